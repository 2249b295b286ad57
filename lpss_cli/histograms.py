"""How a network's weights were spread before training: what an artefact remembers of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lpss_cli.layers import Survivors, measure

if TYPE_CHECKING:
    from torch import nn

#: The entry of an artefact's record.
KEY = "histograms"
_MOST_BINS = 1000


def of_model(model: nn.Module) -> dict[str, Any]:
    """Return name → ends and counts of each prunable weight, in plain containers.

    A few hundred bytes a layer; a weight of zeros alone is left out.
    """
    from lpss_cli.weights import prunable

    found = {n: measure(n, w.tensor, w.row_dim or 0).survivors for n, w in prunable(model).items()}
    return {
        name: {"low": one.low, "high": one.high, "counts": list(one.counts)}
        for name, one in found.items()
        if one is not None
    }


def fit(value: Any) -> bool:
    """Whether an entry of unknown origin is one that ``of_model`` makes."""
    return isinstance(value, dict) and all(map(_fit_one, value.values()))


def _fit_one(one: Any) -> bool:
    if not isinstance(one, dict) or set(one) != {"low", "high", "counts"}:
        return False
    low, high, counts = one["low"], one["high"], one["counts"]
    ends = all(type(end) in (int, float) and math.isfinite(end) for end in (low, high))
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return ends and low <= high and whole and len(counts) <= _MOST_BINS and any(counts)


def of_record(record: Mapping[str, Any]) -> dict[str, Survivors]:
    """Return how each weight was spread, by name, from a checked record; none of older ones."""
    return {
        name: Survivors(one["low"], one["high"], tuple(one["counts"]))
        for name, one in (record.get(KEY) or {}).items()
    }
