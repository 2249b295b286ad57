"""How many CPU threads a run uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Below this much work in a forward pass, handing parts to other threads costs more than it
# saves: an MLP on digits trains 1.5 times as fast on one thread, 4 times on a busy machine.
_WORTH_SHARING = 2e8


def suitable(model: nn.Module, batch: Tensor) -> int:
    """Return one thread for small networks, PyTorch's own choice for the others.

    Args:
        model: the network, on the CPU.
        batch: one training batch; its forward pass is counted in floating-point operations.
    """
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(batch)
    model.train(training)
    return 1 if counter.get_total_flops() < _WORTH_SHARING else torch.get_num_threads()


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Use ``count`` threads inside the block and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
