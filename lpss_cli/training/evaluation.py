"""Outputs and metrics of a network on one part of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpss_cli.data import Source
from lpss_cli.data.tasks import Task
from lpss_cli.utils import torch_utils

# Examples per batch.
_BATCH_SIZE = 1024


@torch.no_grad()
def outputs(
    model: nn.Module,
    source: Source,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return all outputs and targets, on the CPU, with the network in evaluation mode.

    Args:
        model: the network; it is moved to the device, and its modes are restored.
        source: the examples.
        device: device of the forward pass.

    Returns:
        Outputs (N, …) and targets (N, …).
    """
    with torch_utils.preserve_training_mode(model):
        model.eval().to(device)
        pairs = [(model(x).cpu(), y.cpu()) for x, y in source.batches(_BATCH_SIZE, device=device)]
    return torch.cat([o for o, _ in pairs]), torch.cat([y for _, y in pairs])


def evaluate(
    model: nn.Module,
    source: Source,
    task: Task,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the metrics of the task, by name, on a source of examples; see :func:`outputs`."""
    return task.metrics(*outputs(model, source, device=device))
