"""Seeds and orders that depend on nothing but the numbers they are made from."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor


def derive_seed(stream: str, *parts: int) -> int:
    """Make a 63-bit seed for one stream of random numbers.

    Hashed, so that neighbouring seeds, epochs and batches are unrelated: seeds made by adding
    (seed + epoch) give seed 0, epoch 1 the same numbers as seed 1, epoch 0.

    Args:
        stream: what the numbers are for, at most 16 ASCII letters; keeps streams apart.
        parts: for instance (seed, epoch, batch).

    Returns:
        An int in [0, 2**63), the same on every machine.
    """
    text = ",".join(str(int(part)) for part in parts)
    digest = blake2b(text.encode(), digest_size=8, person=stream.encode()).digest()
    # Not 64 bits: some back ends take the seed as a signed number.
    return int.from_bytes(digest, "little") >> 1


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
