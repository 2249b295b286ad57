"""From a request to what a job works with: files, sparsity and settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lpss_cli.checkpoints import artifact_lookup
from lpss_cli.data import Data
from lpss_cli.errors import InputError
from lpss_cli.jobs.config import Request
from lpss_cli.sparsity import layer_targets
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.training.distillation import check_task
from lpss_cli.training.options import TEMPERATURE, Budget, suitable_batch_size, suitable_epochs
from lpss_cli.training.settings import TrainingSettings


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
    return TrainingSettings(
        epochs=suitable_epochs(budget, examples, batch_size) if epochs is None else epochs,
        batch_size=batch_size,
        seed=request.seed,
        sparsity=sparsity,
        layers=request.layers,
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
            f"center of {height}x{width},"
        )
        options = f"--image-size, {options}"
    if set(mean) == {0.0} and set(std) == {1.0}:
        return [f"{what} used as they are; {options}"]
    shown = ", ".join(f"{m:.4g}/{s:.4g}" for m, s in zip(mean[:3], std[:3], strict=True))
    more = f", … ({len(mean)} in total)" if len(mean) > 3 else ""
    return [f"{what} standardized by mean/std {shown}{more}; {options}"]
