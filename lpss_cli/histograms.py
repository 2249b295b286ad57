"""How a network's weights were spread before training: what an artefact remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.entries import HISTOGRAMS
from lpss_cli.closeups import Closeup, closeup
from lpss_cli.layers import measure

if TYPE_CHECKING:
    from torch import nn

    from lpss_cli.weights import Weight


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


def of_record(record: Mapping[str, Any]) -> dict[str, Closeup]:
    """Return how each weight was spread, by name, from a checked record; none of older ones."""
    return {name: _read(one) for name, one in (record.get(HISTOGRAMS) or {}).items()}


def _read(one: Mapping[str, Any]) -> Closeup:
    ends = tuple(one["ends"]) if "ends" in one else None
    near = one["low"], one["high"], tuple(one["counts"])
    return Closeup(*near, outside=one.get("outside", 0), ends=ends)
