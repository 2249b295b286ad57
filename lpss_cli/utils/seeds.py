"""The random generators of this process: PyTorch's, NumPy's and Python's own.

A run's own numbers come from generators of their own; these are for what it does not know: dropout,
and whatever a user's network, data set or augmentation draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


def seed_everything(number: int) -> None:
    """Start all of them from one number."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return where all of them are, that of ``device`` too, as plain containers and tensors."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)  # what legacy=False says
    numbers = {**numpy["state"], "key": numpy["state"]["key"].tolist()}
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": {**numpy, "state": numbers},
        "python": random.getstate(),
    }


def restore_rng_state(saved: Mapping[str, Any], device: torch.device) -> None:
    """Put all of them where :func:`state` found them."""
    numpy = saved["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    random.setstate(saved["python"])
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda" and saved["device"] is not None:
        torch.cuda.set_rng_state(saved["device"], device)


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Put all of them back, after the block, where they were before it."""
    before = rng_state(device)
    try:
        yield
    finally:
        restore_rng_state(before, device)


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
