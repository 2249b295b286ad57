"""One prunable weight in numbers, looked at in blocks of rows: it may be as large as memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpss_cli.prediction import TYPICAL_TRAVEL, predicted_hoyer
from lpss_cli.sphere import hoyer
from lpss_cli.weights import not_finite

_BINS = 40
# Entries that are looked at together: what is computed from them stays in the cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Survivors:
    """The weights of a layer that are not zero.

    Attributes:
        low, high: the ends of the histogram: the smallest and the largest of them.
        counts: how many lie in each of its equal bins.
        centroids: mean of the positive ones, mean of the negative ones; None without any
            (the two numbers of ASNI-II, arXiv:2202.09284).
    """

    low: float
    high: float
    counts: tuple[int, ...]
    centroids: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Layer:
    """One prunable weight.

    Attributes:
        name: the parameter.
        shape: its shape.
        weights: number of entries.
        zeros: number of entries exactly zero.
        hoyer: mean Hoyer of its live rows; None where no row has one.
        dead: number of neurons (rows) whose weights are all zero.
        p: the sphere's exponent it was trained on, if any.
        predicted: Hoyer that p, fan-in and the sparsity of the layer let one expect; None off the
            sphere and for p ≤ 1, where nothing is predicted.
        not_finite: number of entries that are NaN or infinite.
        survivors: how the weights that are not zero spread; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    hoyer: float | None
    dead: int
    p: float | None = None
    predicted: float | None = None
    not_finite: int = 0
    survivors: Survivors | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / weights."""
        return self.zeros / self.weights if self.weights else 0.0


def measure(
    name: str, tensor: Tensor, row_dim: int = 0, fact: Mapping[str, Any] | None = None
) -> Layer:
    """Count and measure one weight; ``fact`` is what its training noted: ``p``, ``travel``."""
    fact = fact or {}
    zeros, dead, bad = 0, 0, 0
    # Sums alone: small tensors kept from each block would keep the memory around them from use.
    total, live = 0.0, 0
    for rows in _blocks(tensor, row_dim):
        kept = rows.count_nonzero(1)
        zeros += rows.numel() - int(kept.sum())
        dead += int((kept == 0).sum())
        bad += not_finite(rows)
        known = hoyer(rows)
        known = known[known.isfinite()]
        total, live = total + float(known.sum()), live + len(known)
    return Layer(
        name=name,
        shape=tuple(tensor.shape),
        weights=tensor.numel(),
        zeros=zeros,
        hoyer=total / live if live else None,
        dead=dead,
        p=fact.get("p"),
        predicted=_predicted(tensor, row_dim, zeros, fact),
        survivors=survivors(tensor, row_dim),
        not_finite=bad,
    )


def _blocks(tensor: Tensor, row_dim: int) -> Iterator[Tensor]:
    """Yield the rows of a weight, (rows, fan-in) of them at a time, never less than one."""
    rows = tensor.detach().movedim(row_dim, 0)
    for block in rows.split(max(1, _BLOCK // max(1, rows[:1].numel()))):
        # PyTorch does not calculate with numbers of 8 bits.
        yield (block.float() if block.element_size() == 1 else block).flatten(1)


def _predicted(tensor: Tensor, row_dim: int, zeros: int, fact: Mapping[str, Any]) -> float | None:
    p, fan_in = fact.get("p"), tensor.numel() // max(1, tensor.shape[row_dim])
    if p is None or p <= 1 or fan_in <= 1 or zeros >= tensor.numel():
        return None
    travel = fact.get("travel") or TYPICAL_TRAVEL
    return predicted_hoyer(p, fan_in, zeros / tensor.numel(), travel)


def survivors(tensor: Tensor, row_dim: int = 0) -> Survivors | None:
    """Return how the weights that are not zero spread; None where there are none."""
    ends: list[float] = []
    sums, numbers = [0.0, 0.0], [0, 0]
    for values in _finite(tensor, row_dim):
        ends += _ends(values)
        for sign, part in enumerate((values.clamp_min(0), values.clamp_max(0))):
            sums[sign] += float(part.sum(dtype=torch.float64))
            numbers[sign] += int(part.count_nonzero())
    if not ends:
        return None
    low, high = min(ends), max(ends)
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for values in _finite(tensor, row_dim):
        counts += _histogram(values, low, high)
    counts[_bin_of(torch.zeros(1), low, high)] -= tensor.numel() - sum(numbers)
    up, down = (s / n if n else None for s, n in zip(sums, numbers, strict=True))
    return Survivors(low, high, tuple(counts.tolist()), (up, down))


def _finite(tensor: Tensor, row_dim: int) -> Iterator[Tensor]:
    """Yield the values of each block in float32; 0 in place of what is not finite."""
    for rows in _blocks(tensor, row_dim):
        values = rows.float()
        yield values.nan_to_num(0.0, 0.0, 0.0) if not_finite(values) else values


def _ends(values: Tensor) -> list[float]:
    """Return the smallest and the largest value that is not 0; nothing where all are."""
    low, high = (float(end) for end in values.aminmax()) if values.numel() else (0.0, 0.0)
    if low < 0 < high:
        return [low, high]
    values = values[values != 0]  # rare: all are of one sign
    return [float(end) for end in values.aminmax()] if len(values) else []


def _bin_of(values: Tensor, low: float, high: float) -> Tensor:
    """Return which of the equal bins from ``low`` to ``high`` values lie in; outside, the ends."""
    width = (high - low) / _BINS or 1.0
    return values.sub(low).div_(width).clamp_(0, _BINS - 1).to(torch.int32)


def _histogram(values: Tensor, low: float, high: float) -> Tensor:
    return torch.bincount(_bin_of(values, low, high).flatten().cpu(), minlength=_BINS)
