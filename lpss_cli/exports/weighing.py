"""What a checkpoint's network costs without its dead units, from what the checkpoint says alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lpss_cli.errors import InputError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.exports.layersizes import Savings
    from lpss_cli.reporting import Report

#: Larger networks are compacted when it is asked for: it takes seconds. Parameters.
QUICK = 2_000_000
# Largest input that a file's record is believed, in numbers: 512 pixels a side.
_LARGEST_INPUT = 1 << 20


def with_savings(report: Report, checkpoint: Checkpoint, arch: str | None = None) -> Report:
    """Add live shapes, parameters and operations where the checkpoint knows its network.

    Args:
        report: of the checkpoint.
        checkpoint: one of lpss; others come back as they are, and so do larger ones than ``QUICK``
            parameters, and those whose tensors are still in the file.
        arch: the network that was typed; code that a file names is not imported without. With it
            the network is tried, or the reason why not is an error.

    Raises:
        InputError: the network that was typed does not exist or fit, or cannot be tried.
    """
    if arch is None and (checkpoint.stream is not None or report.parameters > QUICK):
        return report
    if checkpoint.stream is not None:
        raise InputError(
            f"{checkpoint.path} is read a tensor at a time, and --arch needs all of them",
            "add --sizes",
        )
    try:
        return replace(report, live=savings(checkpoint, arch))
    except InputError:
        if arch is not None:
            raise
        return report  # said where it is asked for


def savings(checkpoint: Checkpoint, arch: str | None = None) -> Savings:
    """Return what removing dead units saves, from the network and input that an artefact names.

    Args:
        checkpoint: its tensors are read.
        arch: the network that was typed.

    Raises:
        InputError: the network or the shape of its inputs is not known, or they do not fit.
    """
    from lpss_cli.exports.compacting import compact

    model, example = _network(checkpoint, arch)
    try:
        return compact(model, example).savings
    except Exception as error:  # whatever a network raises on inputs of another kind
        raise InputError(
            f"{checkpoint.path}: the network cannot be tried: {one_line(error)[:200]}",
            "`lpss export` tries it on its data",
        ) from error


def _network(checkpoint: Checkpoint, typed: str | None) -> tuple[nn.Module, Tensor]:
    """Return the network with its weights, and two random inputs of its shape."""
    import torch

    from lpss_cli import models
    from lpss_cli.checkpoints import artifact
    from lpss_cli.checkpoints.fitting import check_fits, load_into

    arch = artifact.arch_of(checkpoint, typed)
    shape, outputs = checkpoint.meta.get("input_shape"), checkpoint.meta.get("outputs")
    if not shape or not outputs or math.prod(shape) > _LARGEST_INPUT:
        raise InputError(
            f"{checkpoint.path} does not say what inputs its network takes",
            "`lpss report --sizes --data` tries it on its data",
        )
    shape = tuple(shape)
    arch = models.resolve(arch, shape, outputs)
    if typed is None:
        check_fits(arch, shape, outputs, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(arch, shape, outputs)
        example = torch.randn(2, *shape)
    load_into(model, checkpoint, arch)
    return model, example
