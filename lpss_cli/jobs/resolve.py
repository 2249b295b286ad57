"""From a request to what a job works with: files, network and data, sparsity and settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpss_cli import models
from lpss_cli.checkpoints import artifact_lookup
from lpss_cli.checkpoints.identify import check_data, complete_data_spec, identify
from lpss_cli.checkpoints.load_weights import check_fits, load_into, network_part
from lpss_cli.data import Data, DataSpec, load
from lpss_cli.data import is_import_path as is_data_code
from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.jobs.config import Request
from lpss_cli.models import ModelInfo
from lpss_cli.sparsity import layer_targets
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.training.distillation import check_task
from lpss_cli.training.options import (
    TEMPERATURE,
    Budget,
    TrainingOptions,
    suitable_batch_size,
    suitable_epochs,
)
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.utils.options import options
from lpss_cli.utils.torch_utils import counted_forward

if TYPE_CHECKING:
    from lpss_cli.checkpoints.loading import Checkpoint


def input_file(path: Path | None, note: Callable[[str], None]) -> Path:
    """Return the file that was named, else the newest artifact in this folder, and say which.

    Raises:
        InputError: No file was named, and there is no artifact.
    """
    if path is not None:
        return path
    newest = artifact_lookup.newest_artifact(Path())
    note(f"reading {newest}, the newest artifact here")
    return newest


def output_beside(path: Path, suffix: str) -> Path:
    """Return the default output: ``weights.pt`` -> ``weights.sparse.pt``.

    A folder keeps its whole name, and ``.`` has one.
    """
    if not path.name:
        return Path(path.absolute().name + suffix)
    is_folder = os.path.isdir(path)  # Path.is_dir fails on names that are too long
    return path.with_name((path.name if is_folder else path.stem) + suffix)


def sparsity_of(request: Request, weights: Mapping[str, Weight], default: float) -> float:
    """Return the target sparsity.

    It is the one asked for, else what the targets of the layers add up to where they name all
    layers, else the default.

    Args:
        request: The job.
        weights: Prunable weights of the network by name.
        default: Target of the command.

    Raises:
        InputError: A pattern matches nothing, or the targets of the layers do not fit the overall
            target.
    """
    target = default if request.sparsity is None else request.sparsity
    if not request.layers:
        return target
    skipped = resolve_patterns(request.skip, list(weights), "--skip")
    sizes = {name: w.tensor.numel() for name, w in weights.items() if name not in skipped}
    implied = (
        layer_targets.implied_sparsity(request.layers, sizes) if request.sparsity is None else None
    )
    target = target if implied is None else implied
    layer_targets.layer_budgets(request.layers, sizes, target)
    return target


def settings_for(
    request: Request, data: Data, sparsity: float, budget: Budget, keep_zeros: bool = False
) -> TrainingSettings:
    """Return the settings of a training; what the request leaves open suits the size of the data.

    Raises:
        InputError: The task or another option rules distillation out.
    """
    if request.distill:
        check_task(data.task)
    elif request.temperature is not None:
        raise InputError("--temperature needs --distill", "give --distill 0.5 too")
    examples, batch_size, epochs = len(data.train), request.batch_size, request.epochs
    batch_size = suitable_batch_size(examples) if batch_size is None else batch_size
    # All options of training, and those that may be left open with numbers chosen.
    chosen = {name: getattr(request, name) for name in options(TrainingOptions)}
    chosen |= {
        "epochs": suitable_epochs(budget, examples, batch_size) if epochs is None else epochs,
        "batch_size": batch_size,
        "sparsity": sparsity,
        "distill": request.distill or 0.0,
        "temperature": TEMPERATURE if request.temperature is None else request.temperature,
    }
    return TrainingSettings(**chosen, keep_zeros=keep_zeros)


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
            f"center of {height}x{width},"
        )
        options = f"--image-size, {options}"
    if set(mean) == {0.0} and set(std) == {1.0}:
        return [f"{what} used as they are; {options}"]
    shown = ", ".join(f"{m:.4g}/{s:.4g}" for m, s in zip(mean[:3], std[:3], strict=True))
    more = f", … ({len(mean)} in total)" if len(mean) > 3 else ""
    return [f"{what} standardized by mean/std {shown}{more}; {options}"]


# What else helps where the data are not known and nothing is trained.
_WITHOUT_DATA = "; the same tensors as a .safetensors file are pruned without data"


def restore(
    checkpoint: Checkpoint, request: Request, note: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, ModelInfo, Data]:
    """Return a checkpoint's network with its weights, what is known about it, and its data.

    Args:
        checkpoint: an artifact of lpss, or a checkpoint of other origin. If it is the file of a
            whole training program, it holds only the network's part from now on.
        request: the network and data that were typed, if any.
        note: called with what was found out or assumed.

    Raises:
        InputError: the network or the data are unknown, or do not fit the weights or each other.
    """
    info = identify(checkpoint, request.arch, note)
    spec = complete_data_spec(_data_spec(request, checkpoint), info, note)
    data = _load(spec, request)
    check_data(info, data, checkpoint)
    arch = models.resolve(info.arch, data.input_shape, data.outputs)
    info = replace(info, arch=arch, input_shape=data.input_shape, outputs=data.outputs)
    if request.arch is None:
        check_fits(checkpoint, info)
    model = build(info, data, request.seed)
    if not info.recorded:
        checkpoint.state_dict = network_part(checkpoint.state_dict, model.state_dict(), note)
    load_into(model, checkpoint, info)
    return model, replace(info, flops=_dry_run(model, data, info.arch)), data


def untrained(request: Request, data: Data) -> tuple[nn.Module, ModelInfo]:
    """Build a freshly initialized network for data, and return what is known about it.

    Raises:
        InputError: the network is unknown or does not take the data.
    """
    arch = models.resolve(request.arch, data.input_shape, data.outputs)
    info = ModelInfo(arch, input_shape=data.input_shape, outputs=data.outputs)
    model = build(info, data, request.seed)
    return model, replace(info, flops=_dry_run(model, data, info.arch))


def load_data(request: Request) -> Data:
    """Load the data for a new network: those asked for, else digits.

    Raises:
        InputError: They cannot be loaded.
    """
    return _load(_data_spec(request), request)


def build(info: ModelInfo, data: Data, seed: int) -> nn.Module:
    """Build a network for data with random weights from a seed.

    Raises:
        InputError: the network does not exist or does not take the data.
    """
    torch.manual_seed(seed)
    return models.build(info.arch, data.input_shape, data.outputs)


def _dry_run(model: nn.Module, data: Data, arch: str) -> float:
    """Try a network on two training examples, and count the operations of its forward pass.

    Args:
        model: left in training mode.
        data: only the training part is read.
        arch: names the network in messages.

    Returns:
        Floating-point operations per example.

    Raises:
        InputError: the network does not take the data, or has too few outputs, or outputs that the
            loss does not take.
    """
    x, y = next(iter(data.train.batches(2)))
    returned: Any = x
    try:
        returned, flops = counted_forward(model, x)
        with torch.no_grad():
            data.task.loss(returned, y)
        _check_outputs(returned, data, arch)
    except LpssError:
        raise
    except Exception as error:  # whatever the user's network raises
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
    return flops


def _check_outputs(outputs: Tensor, data: Data, arch: str) -> None:
    if data.task.name == "classification" and outputs.shape[-1] < data.outputs:
        raise InputError(
            f"{arch} has {outputs.shape[-1]} outputs for {data.outputs} classes",
            "give the last layer one output per class",
        )


def _load(spec: DataSpec, request: Request) -> Data:
    """Load data; a held-out part replaces the test split if one was asked for.

    Raises:
        InputError: They cannot be loaded.
    """
    data = load(spec)
    return data if request.holdout is None else data.holdout(request.holdout, request.seed)


def _data_spec(request: Request, checkpoint: Checkpoint | None = None) -> DataSpec:
    """Return the data asked for, else the checkpoint's own, else digits for a new network.

    Raises:
        InputError: The data are not known, or they are code that a file names.
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
            f"the checkpoint was trained on {stored['name']}, code that is not imported unless "
            "you ask for it",
            f"pass --data {stored['name']} if you trust it",
        )
    _look_beside(stored, checkpoint)
    if "image_size" in request.data_overrides:
        stored.pop("resize", None)  # belongs to the size that was stored
    return DataSpec.from_dict({**stored, **request.data_overrides})


def _look_beside(stored: dict[str, Any], checkpoint: Checkpoint | None) -> None:
    """Find data that an artifact names by a relative path beside the artifact itself."""
    name = Path(str(stored.get("name", "")))
    # os.path.exists: Path.exists fails on names that are too long.
    if checkpoint and not name.is_absolute() and not os.path.exists(name):
        beside = checkpoint.path.parent / name
        if os.path.exists(beside):
            stored["name"] = str(beside)
