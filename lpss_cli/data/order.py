"""Seeds and orders that depend on nothing but the numbers they are made from."""

from __future__ import annotations

import torch
from torch import Tensor

from lpss_cli.utils.seeds import derive_seed


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch, independent of torch's global generator.

    Returns:
        (n,) int64 permutation on the CPU, a function of (n, seed, epoch) alone.
    """
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(n, generator=generator)


def part_of_batches(order: Tensor, batch_size: int, begin: int, end: int) -> Tensor:
    """Return what one of several processes takes of every full batch, in the order of the batches.

    Args:
        order: (n,) examples of an epoch, the same in all processes.
        batch_size: of the global batch; a smaller last batch is left out.
        begin: the process's first place in every batch.
        end: the place after its last.

    Returns:
        (n // batch_size · (end - begin),) examples.
    """
    full = len(order) // batch_size
    return order[: full * batch_size].view(full, batch_size)[:, begin:end].flatten()
