"""One prunable weight in numbers, looked at in blocks of rows: it may be as large as memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpss_cli.prediction import TYPICAL_TRAVEL, predicted_hoyer
from lpss_cli.tally import Tally, finite

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
    tensor = tensor.detach().cpu()
    seen = Tally()
    for rows in _blocks(tensor, row_dim):
        seen.add(rows)
    zeros = tensor.numel() - seen.kept
    return Layer(
        name=name,
        shape=tuple(tensor.shape),
        weights=tensor.numel(),
        zeros=zeros,
        hoyer=seen.hoyer / seen.live if seen.live else None,
        dead=seen.dead,
        p=fact.get("p"),
        predicted=_predicted(tensor, row_dim, zeros, fact),
        survivors=_survivors(tensor, row_dim, seen),
        not_finite=seen.not_finite,
    )


def _blocks(tensor: Tensor, row_dim: int) -> Iterator[Tensor]:
    """Yield the rows of a weight, (rows, fan-in) of them at a time, never less than one."""
    rows = tensor.movedim(row_dim, 0)
    for block in rows.split(max(1, _BLOCK // max(1, rows[:1].numel()))):
        # PyTorch does not calculate with numbers of 8 bits.
        yield (block.float() if block.element_size() == 1 else block).flatten(1)


def _predicted(tensor: Tensor, row_dim: int, zeros: int, fact: Mapping[str, Any]) -> float | None:
    p, fan_in = fact.get("p"), tensor.numel() // max(1, tensor.shape[row_dim])
    if p is None or p <= 1 or fan_in <= 1 or zeros >= tensor.numel():
        return None
    travel = fact.get("travel") or TYPICAL_TRAVEL
    return predicted_hoyer(p, fan_in, zeros / tensor.numel(), travel)


def _survivors(tensor: Tensor, row_dim: int, seen: Tally) -> Survivors | None:
    """Read the weight once more, now that the ends of the histogram are known."""
    if not seen.above + seen.below:
        return None
    counts = torch.zeros(_BINS, dtype=torch.int64)
    # A value of float64 may be too large for float32.
    with_care = seen.not_finite > 0 or tensor.dtype == torch.float64
    for rows in _blocks(tensor, row_dim):
        values = finite(rows) if with_care else rows.float()
        counts += _histogram(values, seen.low, seen.high)
    zeros = tensor.numel() - seen.above - seen.below
    counts[_bin_of(torch.zeros(1), seen.low, seen.high)] -= zeros
    up = seen.up / seen.above if seen.above else None
    down = -seen.down / seen.below if seen.below else None
    return Survivors(seen.low, seen.high, tuple(counts.tolist()), (up, down))


def _bin_of(values: Tensor, low: float, high: float) -> Tensor:
    """Return which of the equal bins from ``low`` to ``high`` values lie in; outside, the ends."""
    width = (high - low) / _BINS or 1.0
    return values.sub(low).div_(width).clamp_(0, _BINS - 1).to(torch.int32)


def _histogram(values: Tensor, low: float, high: float) -> Tensor:
    return torch.bincount(_bin_of(values, low, high).flatten(), minlength=_BINS)
