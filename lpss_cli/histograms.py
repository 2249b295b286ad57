"""How a network's weights were spread before training: what an artefact remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lpss_cli.closeups import Closeup, closeup
from lpss_cli.layers import measure

if TYPE_CHECKING:
    from torch import nn

    from lpss_cli.weights import Weight

#: The entry of an artefact's record.
KEY = "histograms"
_NEAR, _FAR = {"low", "high", "counts"}, {"outside", "ends"}
_MOST_BINS = 1000
# What is counted is float32; the distance of larger ends may be no number.
_LARGEST = float.fromhex("0x1.fffffep127")


def of_model(model: nn.Module) -> dict[str, Any]:
    """Return name → ends and counts of each prunable weight, in plain containers.

    A few hundred bytes a layer; a weight of zeros alone is left out.
    """
    from lpss_cli.weights import prunable

    found = {name: _of_weight(name, weight) for name, weight in prunable(model).items()}
    return {name: one for name, one in found.items() if one is not None}


def _of_weight(name: str, weight: Weight) -> dict[str, Any] | None:
    whole = measure(name, weight.tensor, weight.row_dim or 0).survivors
    if whole is None:
        return None
    one = closeup(whole, lambda: weight.tensor)
    near = {"low": one.low, "high": one.high, "counts": list(one.counts)}
    return near if one.ends is None else near | {"outside": one.outside, "ends": list(one.ends)}


def fit(value: Any) -> bool:
    """Whether an entry of unknown origin is one that ``of_model`` makes."""
    return isinstance(value, dict) and all(map(_fit_one, value.values()))


def _fit_one(one: Any) -> bool:
    if not isinstance(one, dict) or set(one) not in (_NEAR, _NEAR | _FAR):
        return False
    low, high, counts = one["low"], one["high"], one["counts"]
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    fits = _rising([low, high]) and whole and len(counts) <= _MOST_BINS and any(counts)
    if not fits or "ends" not in one:
        return fits
    ends, outside = one["ends"], one["outside"]
    return _rising(ends, low, high) and type(outside) is int and outside > 0


def _rising(ends: Any, *between: float) -> bool:
    """Whether these are two numbers of float32's range, and others lie between, all in order."""
    if not isinstance(ends, list) or len(ends) != 2:
        return False
    finite = all(type(end) in (int, float) and abs(end) <= _LARGEST for end in ends)
    numbers = [ends[0], *between, ends[1]]
    return finite and numbers == sorted(numbers)


def of_record(record: Mapping[str, Any]) -> dict[str, Closeup]:
    """Return how each weight was spread, by name, from a checked record; none of older ones."""
    return {name: _read(one) for name, one in (record.get(KEY) or {}).items()}


def _read(one: Mapping[str, Any]) -> Closeup:
    ends = tuple(one["ends"]) if "ends" in one else None
    near = one["low"], one["high"], tuple(one["counts"])
    return Closeup(*near, outside=one.get("outside", 0), ends=ends)
