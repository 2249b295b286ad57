"""Seeds of random streams, and the state of this process's global random generators.

What lpss itself draws comes from generators that are seeded by :func:`derive_seed`. The global
generators of PyTorch, NumPy and Python serve everything else: dropout, and whatever a user's
network, data set or augmentation draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


def derive_seed(stream: str, *parts: int) -> int:
    """Derive a 63-bit seed for one stream of random numbers.

    The arguments are hashed, so that neighboring seeds, epochs and batches are unrelated: with
    seed + epoch, seed 0 in epoch 1 would give the same numbers as seed 1 in epoch 0.

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


def seed_everything(seed: int) -> None:
    """Seed the global generators of PyTorch, NumPy and Python with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators as plain containers and tensors.

    That of ``device`` is included if it is a CUDA device.
    """
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)  # legacy=False says so
    numbers = {**numpy["state"], "key": numpy["state"]["key"].tolist()}
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {**numpy, "state": numbers},
        "python": random.getstate(),
    }


def restore_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators back into a state that :func:`rng_state` returned."""
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Put the global generators back, after the block, into the state before it."""
    before = rng_state(device)
    try:
        yield
    finally:
        restore_rng_state(before, device)
