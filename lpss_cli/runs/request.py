"""A job as a person asks for it, and what can be refused of it before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lpss_cli import layertargets
from lpss_cli.errors import InputError, nearest
from lpss_cli.utils.torch_utils import MAX_THREADS, PRECISIONS

# Beyond that, two tries differ by less than a weight in most networks.
_MOST_TRIES = 20


@dataclass(frozen=True)
class Request:
    """One training job as a person asks for it; None means the default.

    Attributes:
        out: the artefact to write.
        data: what to train on; None takes the checkpoint's own, or digits.
        data_overrides: fields of the data spec that were given explicitly.
        arch: network spec; None takes the checkpoint's own, or the default for the data.
        method: a registered method; None is lpss where a sparsity is asked for, else dense.
        options: the method's options that were given.
        sparsity: target; None is 0 for train and 0.9 for sparsify.
        target_drop: hundredths of the primary metric that may be lost: the sparsity is searched.
        tries: of that search; None is enough for a fifth of the kept weights.
        epochs, batch_size: budget; None suits the size of the data.
        seed: of initialisation, order, masks.
        device: ``auto``, ``cpu``, ``cuda``, ….
        threads: of the CPU; None is one for small networks, else PyTorch's choice.
        precision: of the forward and backward pass: ``fp32`` or ``bf16``.
        distill: part of the loss that compares with the dense network; None is 0.
        temperature: of that comparison; None is the usual one.
        layer: ``PATTERN=SPARSITY`` of layers with a target of their own.
        skip: globs of weights that are not pruned.
        holdout: measure on this part of the training data instead of the test split.
        keep_init: store the weights that training starts from, for tickets.
        force: replace an existing output.
        resume: go on with a killed run of the same request, if there is one.
        checkpoint_steps: save the state every so many steps too; None is at ends of epochs alone.
        eval_every: measure after every so many epochs too, for curves; 0 is never, None ten times.
        log: append a JSON line an epoch to this file.
        tensorboard: write events of every epoch to this folder.
        trust_pickle: unpickle arbitrary objects.
        command: the command line, for the record.
    """

    out: Path = Path("model.pt")
    data: str | None = None
    data_overrides: Mapping[str, Any] = field(default_factory=dict)
    arch: str | None = None
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sparsity: float | None = None
    target_drop: float | None = None
    tries: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = "fp32"
    distill: float | None = None
    temperature: float | None = None
    layer: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    holdout: float | None = None
    keep_init: bool = False
    force: bool = False
    resume: bool = False
    checkpoint_steps: int | None = None
    eval_every: int | None = None
    log: Path | None = None
    tensorboard: Path | None = None
    trust_pickle: bool = False
    command: str = ""


def device_of(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no device {name!r} here: {reason}", "use --device cpu") from None
    return device


def check(request: Request) -> None:
    """Refuse numbers that cannot be, before any work.

    Raises:
        InputError: an impossible batch size, seed, number of epochs, of threads or of steps, or a
            device that is not there.
    """
    limits = {
        "batch_size": (1, None),
        "epochs": (0, None),
        "seed": (0, 2**63 - 1),
        "target_drop": (0, 100),
        "tries": (1, _MOST_TRIES),
        "distill": (0, 1),
        "temperature": (0.1, 100),
        "threads": (1, MAX_THREADS),
        "checkpoint_steps": (1, None),
        "eval_every": (0, None),
    }
    for name, (low, high) in limits.items():
        value = getattr(request, name)
        if value is not None and not low <= value <= (math.inf if high is None else high):
            flag, bound = "--" + name.replace("_", "-"), f" to {high}" if high else " up"
            raise InputError(f"{flag} {value} is out of range", f"give {flag} from {low}{bound}")
    if request.log is not None and request.log.absolute() == request.out.absolute():
        raise InputError(f"--log and --out are both {request.out}", "choose another --log")
    if request.precision not in PRECISIONS:
        raise InputError(
            f"--precision {request.precision!r} is not a choice",
            nearest(request.precision, PRECISIONS),
        )
    layertargets.check(request.layer)
    _check_search(request)
    device_of(request.device)


def _check_search(request: Request) -> None:
    """Refuse what a search for the sparsity leaves no room for."""
    if request.target_drop is None:
        if request.tries is not None:
            raise InputError("--tries is of the search of --target-drop", "leave --tries out")
        return
    others = {"--sparsity": request.sparsity is not None, "--layer": bool(request.layer)}
    for flag, given in others.items():
        if given:
            raise InputError(
                f"--target-drop finds the sparsity, and {flag} says it", "give one of the two"
            )
