"""Small PyTorch helpers: training modes, number formats, memory layout, and CPU threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# FLOPs of a forward pass below which sharing the work among threads costs more than it saves: an
# MLP on digits trains 1.5 times as fast on one thread, and 4 times as fast on a busy machine.
_MIN_SHARED_FLOPS = 2e8


@contextmanager
def preserve_training_mode(model: nn.Module) -> Iterator[None]:
    """Put every module back, after the block, into training or evaluation mode as before.

    ``model.train()`` alone would unfreeze a BatchNorm that somebody has set to evaluation mode.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # From the outside in: train() sets the mode of all modules within a module.
        for module, training in before:
            if module.training != training:
                module.train(training)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Compute matrix products and convolutions inside the block in ``precision``: fp32 or bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def to_channels_last(model: nn.Module) -> None:
    """Store convolution weights with their channels last, the faster layout for training.

    Values and shapes stay the same. :func:`to_contiguous` undoes it.
    """
    _set_layout(model, torch.channels_last)


@torch.no_grad()
def to_contiguous(model: nn.Module) -> None:
    """Store all weights in the order of their dimensions, as files do."""
    _set_layout(model, torch.contiguous_format)


def _set_layout(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def forward_flops(model: nn.Module, examples: Tensor) -> float:
    """Count the FLOPs per example of a forward pass of examples (N, ...)."""
    return counted_forward(model, examples)[1]


def counted_forward(model: nn.Module, examples: Tensor) -> tuple[Any, float]:
    """Run a forward pass of examples (N, ...) in evaluation mode, without gradients.

    Returns:
        What the model returns, and the FLOPs per example, those of attention products included.
    """
    with preserve_training_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        returned = model.eval()(examples)
    return returned, float(counter.get_total_flops()) / len(examples)


def suitable_threads(flops: float) -> int:
    """Return 1 for a forward pass of few FLOPs, otherwise PyTorch's own number of threads."""
    return 1 if flops < _MIN_SHARED_FLOPS else torch.get_num_threads()


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Use ``count`` threads inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
