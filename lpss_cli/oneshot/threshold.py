"""Where a cut lies: the exact rank among all entries of a file, in three readings at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lpss_cli.errors import InputError
from lpss_cli.oneshot.blocks import Entry, Keys, blocks, keys_of

_LOW = 15  # bits of a magnitude that the first count leaves out
# Blocks that the first count looks at, and the share of entries that it may be wrong by.
_SAMPLED, _MARGIN = 64, 0.01
_INFINITE = 0x7F800000


@dataclass(frozen=True)
class Threshold:
    """What goes: all entries whose key is below ``key``, and those that equal it but ``ties``."""

    key: int
    ties: int


def find(path: Path, source: BinaryIO, pruned: Sequence[Entry], wanted: int) -> Threshold:
    """Find the threshold that makes ``wanted`` zeros.

    Raises:
        InputError: a value is not finite, or the file ends early.
    """
    number = sum(tensor.blocks for tensor in pruned)
    # A part of the file tells roughly where the threshold lies; all of it, exactly.
    for stride, margin in ((max(1, number // _SAMPLED), _MARGIN), (1, 0.0)):
        low, high = _bracket(source, pruned, wanted, stride, margin)
        below, inside = _within(path, source, pruned, low, high)
        if wanted == 0:
            return Threshold(0, 0)
        rank = wanted - below
        if 0 < rank <= len(inside):
            break
    key = int(np.partition(inside, rank - 1)[rank - 1])
    # Of the entries that equal the threshold the first are kept.
    return Threshold(key, int(np.count_nonzero(inside <= key)) - rank)


def _bracket(
    source: BinaryIO, pruned: Sequence[Entry], wanted: int, stride: int, margin: float
) -> tuple[int, int]:
    """Return keys between which the threshold should lie, from a count by high bits.

    Args:
        source: the file.
        pruned: the tensors to cut.
        wanted: number of zeros.
        stride: of so many blocks one is looked at.
        margin: the part of all entries that the bracket is wider to both sides.
    """
    counts = np.zeros(1 << (32 - _LOW), np.int64)
    number = 0
    for tensor in pruned:
        for block in blocks(source, tensor, every=stride, first=-number % stride):
            counts += np.bincount(keys_of(block) >> np.uint32(_LOW), minlength=len(counts))
        number += tensor.blocks
    below = np.cumsum(counts)
    total = sum(tensor.count for tensor in pruned)
    share = wanted / total if total else 0.0
    ends = (np.clip(share + side * margin, 0, 1) * below[-1] for side in (-1, 1))
    if margin == 0.0:
        ends = (wanted for _ in range(2))
    low, high = (int(np.searchsorted(below, end)) for end in ends)
    return low << _LOW, (min(high, len(counts) - 1) + 1) << _LOW


def _within(
    path: Path, source: BinaryIO, pruned: Sequence[Entry], low: int, high: int
) -> tuple[int, Keys]:
    """Count the keys below ``low`` and collect those in [low, high)."""
    below, found = 0, [np.zeros(0, np.uint32)]
    for tensor in pruned:
        bad = 0
        for block in blocks(source, tensor):
            keys = keys_of(block)
            bad += int(np.count_nonzero(keys >= _INFINITE))
            below += int(np.count_nonzero(keys < low))
            found.append(keys[(keys >= low) & (keys < high)])
        if bad:
            raise InputError(
                f"{path}: {tensor.name} holds {bad} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )
    return below, np.concatenate(found)
