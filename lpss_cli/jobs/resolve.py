"""What a request comes to: the data, the network with its weights, the target and the settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli import models
from lpss_cli.checkpoints import artifact, identify
from lpss_cli.checkpoints.load_weights import check_fits, load_into, part_of
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data, DataSpec, load
from lpss_cli.data import is_import_path as is_data_code
from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.jobs.config import Request
from lpss_cli.sparsity import layer_targets
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.training.distillation import check_task
from lpss_cli.training.setup import TEMPERATURE, Settings
from lpss_cli.utils import torch_utils

# Enough steps to settle in on small data; beyond that, epochs count: (epochs, steps).
TRAIN_BUDGET = (12, 2000)
SPARSIFY_BUDGET = (4, 1000)
#: Zeros that sparsify aims at where nothing is asked for.
SPARSITY = 0.9
# What else helps where nobody says which data, for one cut.
_WITHOUT_DATA = "; the same tensors as a .safetensors file are cut without"


def restore(
    checkpoint: Checkpoint, request: Request, note: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, str, Data]:
    """Return the checkpoint's network with its weights, the network's spec, and its data.

    Args:
        checkpoint: ours, or one of other origin: its network is recognised, if nobody typed it, and
            of a file of a whole training program it holds the network's part from now on.
        request: what was typed.
        note: told what was found out or assumed.

    Raises:
        InputError: the network or the data are unknown, or do not fit the weights or each other.
    """
    fit = None
    if checkpoint.meta:
        arch = artifact.arch_of(checkpoint, request.arch)
        spec = data_spec(request, checkpoint)
    else:
        arch, fit = identify.identify(checkpoint, request.arch, note)
        # A network of other origin has seen its arrays as they are.
        spec = data_spec(request, checkpoint).unstandardised()
        spec = identify.as_published(spec, checkpoint, arch, fit, note)
    data = _loaded(spec, request)
    if fit is not None:
        identify.check_data(fit, data, checkpoint)
    arch = models.resolve(arch, data.input_shape, data.outputs)
    # The networks of torchvision and timm are as large as their names say, no larger.
    if request.arch is None and not arch.startswith(("torchvision:", "timm:")):
        check_fits(arch, data.input_shape, data.outputs, checkpoint)
    torch.manual_seed(request.seed)
    model = models.build(arch, data.input_shape, data.outputs)
    if not checkpoint.meta:
        checkpoint.state_dict = part_of(checkpoint.state_dict, model.state_dict(), note)
    load_into(model, checkpoint, arch)
    dry_run(model, data, arch)  # says in words where they do not fit
    return model, arch, data


def sparsity_of(request: Request, weights: Mapping[str, Weight], default: float) -> float:
    """Return the target: typed, else what ``--layer`` adds up to where it names all, else default.

    Args:
        request: what was typed.
        weights: name → prunable weight of the network.
        default: of the command.

    Raises:
        InputError: a pattern matches nothing, or the layers' targets do not fit the whole's.
    """
    target = default if request.sparsity is None else request.sparsity
    if not request.layer:
        return target
    skipped = resolve_patterns(request.skip, list(weights), "--skip")
    sizes = {name: w.tensor.numel() for name, w in weights.items() if name not in skipped}
    whole = (
        layer_targets.implied_sparsity(request.layer, sizes) if request.sparsity is None else None
    )
    target = target if whole is None else whole
    layer_targets.layer_budgets(request.layer, sizes, target)
    return target


def load_data(request: Request) -> Data:
    """Load the data that was typed for a new network, else digits.

    Raises:
        InputError: they cannot be loaded.
    """
    return _loaded(data_spec(request), request)


def _loaded(spec: DataSpec, request: Request) -> Data:
    data = load(spec)
    return data if request.holdout is None else data.holdout(request.holdout, request.seed)


def data_spec(request: Request, checkpoint: Checkpoint | None = None) -> DataSpec:
    """Return the data that was typed, else the checkpoint's own, else digits for a new network.

    Raises:
        InputError: nobody said which data, or they are code from a file.
    """
    own = checkpoint.meta.get("data") if checkpoint else {"name": "digits"}
    stored = dict(own) if isinstance(own, Mapping) else {}
    if request.data is not None and request.data != stored.get("name"):
        stored = {"name": request.data}
    elif not stored and checkpoint:
        raise InputError(
            f"{checkpoint.path} does not say which data it was trained on",
            "pass --data" + ("" if request.epochs != 0 else _WITHOUT_DATA),
        )
    elif request.data is None and is_data_code(str(stored.get("name", ""))):
        raise InputError(
            f"the checkpoint was trained on {stored['name']}, code that is never imported unasked",
            f"pass --data {stored['name']} if you trust it",
        )
    _look_beside(stored, checkpoint)
    if "image_size" in request.data_overrides:
        stored.pop("resize", None)  # belongs to the size that was stored
    return DataSpec.from_dict({**stored, **request.data_overrides})


def _look_beside(stored: dict[str, Any], checkpoint: Checkpoint | None) -> None:
    """Find data that an artefact names by a relative path beside the artefact itself."""
    name = Path(str(stored.get("name", "")))
    # os.path.exists: Path.exists fails on names that are too long.
    if checkpoint and not name.is_absolute() and not os.path.exists(name):
        beside = checkpoint.path.parent / name
        if os.path.exists(beside):
            stored["name"] = str(beside)


def settings_for(
    request: Request, data: Data, sparsity: float, budget: tuple[int, int], keep_zeros: bool = False
) -> Settings:
    """Choose what was left open by the size of the data."""
    n = len(data.train)
    # A power of two from 16 to 256 that leaves 64 or more steps to an epoch.
    size = request.batch_size or max(16, min(256, 1 << max(0, (n // 64).bit_length() - 1)))
    if request.distill:
        check_task(data.task)
    elif request.temperature is not None:
        raise InputError("--temperature is of --distill", "give --distill 0.5 too")
    epochs, steps = budget
    suited = max(epochs, -(-steps // max(1, n // size)))
    return Settings(
        epochs=suited if request.epochs is None else request.epochs,
        batch_size=size,
        seed=request.seed,
        sparsity=sparsity,
        layers=request.layer,
        skip=request.skip,
        keep_zeros=keep_zeros,
        precision=request.precision,
        distill=request.distill or 0.0,
        temperature=TEMPERATURE if request.temperature is None else request.temperature,
    )


def preprocessing_notes(data: Data) -> list[str]:
    """Say what is done to the inputs, so that nobody has to guess it."""
    done = data.preprocessing
    mean, std = done.get("mean"), done.get("std")
    if not mean or not std or done.get("kind") == "table":
        return []
    what, options = "inputs are", "--mean and --std change that"
    if "resize_shorter_side" in done:
        height, width = done["image_size"]
        what = (
            f"images: shorter side to {done['resize_shorter_side']} ({done['interpolation']}), "
            f"centre of {height}x{width},"
        )
        options = f"--image-size, {options}"
    if set(mean) == {0.0} and set(std) == {1.0}:
        return [f"{what} used as they are; {options}"]
    few = ", ".join(f"{m:.4g}/{s:.4g}" for m, s in zip(mean[:3], std[:3], strict=True))
    more = f", … ({len(mean)} in all)" if len(mean) > 3 else ""
    return [f"{what} standardised by mean/std {few}{more}; {options}"]


# MERGED: Two examples through a network before any training: whether they fit, and what they cost.
def dry_run(model: nn.Module, data: Data, arch: str) -> float:
    """Try two examples, and return the floating-point operations of one.

    Args:
        model: left in training mode.
        data: only the training part is touched.
        arch: names the network in messages.

    Raises:
        InputError: the network does not take the data, or has too few outputs or other ones.
    """
    x, y = next(iter(data.train.batches(2)))
    returned: Any = x
    try:
        count = torch_utils.forward_flops(model, x)
        with torch.no_grad():
            returned = model.eval()(x)
            data.task.loss(returned, y)
        _check_outputs(model(x), data, arch)
    except LpssError:
        raise
    except Exception as error:  # whatever a user's network raises
        if not isinstance(returned, Tensor):
            raise InputError(
                f"{arch} returns a {type(returned).__name__}, and the loss cannot take it: "
                f"{one_line(error)}",
                "let its forward return the outputs alone, or give data with a loss of its own: "
                "--data file.py:factory",
            ) from error
        raise InputError(
            f"{arch} does not take inputs of shape {tuple(x.shape[1:])}: {one_line(error)}",
            "give an --arch and --data that fit",
        ) from error
    finally:
        model.train()
    return count


def _check_outputs(outputs: Tensor, data: Data, arch: str) -> None:
    if data.task.name == "classification" and outputs.shape[-1] < data.outputs:
        raise InputError(
            f"{arch} has {outputs.shape[-1]} outputs for {data.outputs} classes",
            "give the last layer one output per class",
        )
