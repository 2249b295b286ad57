"""The random generators of this process: PyTorch's, NumPy's and Python's own.

A run's own numbers come from generators of their own; these are for what it does not know: dropout,
and whatever a user's network, data set or augmentation draws.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Start all of them from one number."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def state(device: torch.device) -> dict[str, Any]:
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


def restore(saved: Mapping[str, Any], device: torch.device) -> None:
    """Put all of them where :func:`state` found them."""
    numpy = saved["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    random.setstate(saved["python"])
    torch.set_rng_state(saved["torch"])
    if device.type == "cuda" and saved["device"] is not None:
        torch.cuda.set_rng_state(saved["device"], device)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """Put all of them back, after the block, where they were before it."""
    before = state(device)
    try:
        yield
    finally:
        restore(before, device)
