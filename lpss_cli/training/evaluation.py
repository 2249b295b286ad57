"""Metrics of a network on one part of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lpss_cli.data import Source
from lpss_cli.data.tasks import Task
from lpss_cli.utils import torch_utils

# Examples at a time.
_BATCH = 1024


@torch.no_grad()
def outputs(
    model: nn.Module,
    source: Source,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """All outputs and targets of a source, on the CPU, with the network in evaluation mode."""
    with torch_utils.preserve_training_mode(model):
        model.eval().to(device)
        pairs = [(model(x).cpu(), y.cpu()) for x, y in source.batches(_BATCH, device=device)]
    return torch.cat([o for o, _ in pairs]), torch.cat([y for _, y in pairs])


def evaluate(
    model: nn.Module,
    source: Source,
    task: Task,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the task's metrics, by name, on the source."""
    return task.metrics(*outputs(model, source, device=device))
