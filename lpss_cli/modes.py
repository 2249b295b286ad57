"""The modes of a network's modules, training or evaluation, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
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
