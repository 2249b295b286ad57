"""How a network is computed while it trains: number format and memory layout."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

#: Formats of activations and products; weights, gradients and optimizer state stay as they are.
PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Compute matrix products and convolutions inside the block in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def channels_last(model: nn.Module) -> None:
    """Store convolution weights with their channels last: the faster layout for training.

    Values and shapes stay as they are. ``contiguous`` goes back.
    """
    _relayout(model, torch.channels_last)


@torch.no_grad()
def contiguous(model: nn.Module) -> None:
    """Store all weights in the order of their dimensions, as files do."""
    _relayout(model, torch.contiguous_format)


def _relayout(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
