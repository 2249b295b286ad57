"""A job as a person asks for it, and what can be refused of it before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lpss_cli.errors import InputError, nearest
from lpss_cli.sparsity import layer_targets, targets
from lpss_cli.training import method as methods
from lpss_cli.utils.torch_utils import MAX_THREADS, PRECISIONS

# MERGED: Options by their names, as typed or as written in a recipe, and the request they make.
# MERGED: The names are those of the command line, with underscores. A value may be the text that
# MERGED: a person
# MERGED: types (``"60x"``, ``"study,run"``) or what TOML makes of it (``0.9``, ``["study",
# MERGED: "run"]``).
_REQUEST: dict[str, Any] = {
    "data": str,
    "arch": str,
    "method": str,
    "sparsity": float,
    "target_drop": float,
    "tries": int,
    "epochs": int,
    "batch_size": int,
    "seed": int,
    "device": str,
    "threads": int,
    "precision": str,
    "distill": float,
    "temperature": float,
    "layer": list[str],
    "skip": list[str],
    "holdout": float,
    "checkpoint_steps": int,
    "eval_every": int,
}
_DATA: dict[str, Any] = {
    "data_dir": str,
    "target": str,
    "drop": list[str],
    "image_size": int,
    "mean": list[float],
    "std": list[float],
    "augment": str,
    "split_seed": int,
    "workers": int,
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list[str]: "a text, or a list of texts",
}


@cache
def option_types() -> dict[str, Any]:
    """Name → type of every option that says what to do; not of those that say where to write."""
    return methods.option_kinds() | _REQUEST | _DATA


def check_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as the library takes them, without those that are None.

    Raises:
        InputError: a name that no option has, or a value of another kind than the option's.
    """
    for name in values:
        if name not in option_types():
            raise InputError(f"there is no option {name!r}", nearest(name, tuple(option_types())))
    return {name: _value(name, value) for name, value in values.items() if value is not None}


def make_request(
    typed: Mapping[str, Any], base: Mapping[str, Any] | None = None, **rest: Any
) -> Request:
    """Make the request of a command.

    Args:
        typed: the options that were given; one that is None was not.
        base: options of a recipe; what was given wins over them.
        rest: fields of ``Request`` that are no options of a run: ``out``, ``force``, ….

    Raises:
        InputError: see :func:`check`.
    """
    own, base = check_options(typed), check_options(base or {})
    if "method" in own and own["method"] != base.get("method", own["method"]):
        # The base's options are those of its own method.
        base = {name: v for name, v in base.items() if name in _REQUEST or name in _DATA}
    values = base | own
    fields = {name: value for name, value in values.items() if name in _REQUEST}
    data = {name: value for name, value in values.items() if name in _DATA}
    options = {name: v for name, v in values.items() if name not in fields and name not in data}
    return Request(**fields, data_overrides=data, options=options, **rest)


def _value(name: str, value: Any) -> Any:
    """Return one value as the library takes it."""
    if isinstance(value, Path):
        value = str(value)
    if name == "sparsity":
        return targets.parse_sparsity(value)
    if name == "drop" and isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    if name in ("mean", "std"):
        return _numbers(value, f"--{name}")
    kind = option_types()[name]
    if kind == list[str]:
        value = (value,) if isinstance(value, str) else value
        fits = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
        value = tuple(value) if fits else value
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    if not fits:
        flag = "--" + name.replace("_", "-")
        raise InputError(f"{flag} {value!r} is not {_WORDS[kind]}", f"give {_WORDS[kind]}")
    return value


def _numbers(value: Any, flag: str) -> tuple[float, ...]:
    """Read ``0.5,0.5,0.5``, one number, or a list of numbers."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(map(float, parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{flag} {value!r} is no list of numbers", f"write {flag} 0.48,0.45,0.40")
    return numbers


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
    layer_targets.check_layer_targets(request.layer)
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
