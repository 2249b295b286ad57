"""The modes of a network's modules, training or evaluation, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def preserve_training_mode(model: nn.Module) -> Iterator[None]:
    """Put every module back, after the block, into the mode it was in before.

    ``model.train()`` alone would wake what somebody has frozen: a BatchNorm in evaluation mode.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # From the outside in: the mode of a module is that of all within it.
        for module, training in before:
            if module.training != training:
                module.train(training)


# MERGED: How a network is computed while it trains: number format and memory layout.


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Compute matrix products and convolutions inside the block in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def to_channels_last(model: nn.Module) -> None:
    """Store convolution weights with their channels last: the faster layout for training.

    Values and shapes stay as they are. ``contiguous`` goes back.
    """
    _relayout(model, torch.channels_last)


@torch.no_grad()
def to_contiguous(model: nn.Module) -> None:
    """Store all weights in the order of their dimensions, as files do."""
    _relayout(model, torch.contiguous_format)


def _relayout(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


# MERGED: How many CPU threads a run uses.
# Below this much work in a forward pass, handing parts to other threads costs more than it
# saves: an MLP on digits trains 1.5 times as fast on one thread, 4 times on a busy machine.
_WORTH_SHARING = 2e8


def forward_flops(model: nn.Module, examples: Tensor) -> float:
    """Count the floating-point operations of a forward pass, per example."""
    with preserve_training_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(examples)
    return float(counter.get_total_flops()) / len(examples)


def suitable_threads(flops: float) -> int:
    """Return one thread for a forward pass of little work, else PyTorch's own choice."""
    return 1 if flops < _WORTH_SHARING else torch.get_num_threads()


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Use ``count`` threads inside the block and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
