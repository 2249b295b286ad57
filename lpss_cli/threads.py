"""How many CPU threads a run uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lpss_cli import modes

# Below this much work in a forward pass, handing parts to other threads costs more than it
# saves: an MLP on digits trains 1.5 times as fast on one thread, 4 times on a busy machine.
_WORTH_SHARING = 2e8
# More than a few threads a core only wait; tens of thousands crash the process.
LARGEST = 4 * (os.cpu_count() or 1)


def forward_flops(model: nn.Module, examples: Tensor) -> float:
    """Count the floating-point operations of a forward pass, per example."""
    with modes.kept(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(examples)
    return float(counter.get_total_flops()) / len(examples)


def suitable(flops: float) -> int:
    """Return one thread for a forward pass of little work, else PyTorch's own choice."""
    return 1 if flops < _WORTH_SHARING else torch.get_num_threads()


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Use ``count`` threads inside the block and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
