"""The k weights of the largest LAMP scores, without sorting them all.

Lee et al., arXiv:2010.07611: within a layer a weight scores ``w_i² / Σ_{|w_j| ≥ |w_i|} w_j²``. A
smaller weight scores less, so a bin of magnitudes has bounds on its scores once the sums of squares
of the bins above it are known. A bin that is surely kept or surely cut needs no more. What is left,
a few bins of each layer, is scored and sorted exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bins of a layer, equally wide in log|w|; the last one takes all that lies below the others.
_BINS, _RANGE = 4096, 40.0
# By how much rounding may move a weight across the edge of a bin, in bins, and a bound.
_EDGE, _SLACK = 0.02, 1e-9


def lamp_masks(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """Keep the k largest LAMP scores over all layers; of equal ones the first.

    Args:
        scores: log|w| of every weight, one tensor a layer, fp32 or longer; -inf is never kept.
            No NaN, no +inf.
        k: how many to keep; fewer where fewer are finite.

    Returns:
        Boolean masks of the scores' shapes, True = kept.
    """
    masks = {name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()}
    layers = {n: _layer(s.flatten()) for n, s in scores.items() if bool((s > -math.inf).any())}
    if not layers:
        return masks
    spans = _undecided(list(layers.values()), k)
    rivals = []
    for layer, (first, last) in zip(layers.values(), spans, strict=True):
        k -= int(layer.counts[:first].sum())
        rivals.append(_scored(layer, first, last))
    ranked = torch.cat([found for _, found in rivals])
    chosen = torch.zeros_like(ranked, dtype=torch.bool)
    chosen[ranked.argsort(descending=True, stable=True)[:k]] = True
    parts = chosen.split([len(found) for _, found in rivals])
    for name, (first, _), (places, _), part in zip(layers, spans, rivals, parts, strict=True):
        flat = layers[name].bins < first
        flat[places[part]] = True
        masks[name] = flat.view(scores[name].shape)
    return masks


@dataclass(frozen=True)
class _Layer:
    """One layer in bins of falling magnitude, the largest weight in the first.

    Attributes:
        scores: log|w|, flat.
        top: the largest of them.
        bins: the bin of each; weights of -inf are in none, beyond the last.
        counts, mass: how many each bin holds, and ``Σ exp(2(log|w| - top))``.
    """

    scores: Tensor
    top: Tensor
    bins: Tensor
    counts: Tensor
    mass: Tensor


def _layer(scores: Tensor) -> _Layer:
    top = scores.max()
    # The same operations on every weight, so a larger one is never in a later bin.
    places = (top - scores).mul_(_BINS / _RANGE)
    bins = places.clamp_(max=_BINS - 1).to(torch.int16).masked_fill_(scores == -math.inf, _BINS)
    squares = (scores.double() - top).mul_(2).exp_()
    counts = torch.bincount(bins, minlength=_BINS + 1)[:_BINS]
    mass = torch.bincount(bins, squares, minlength=_BINS + 1)[:_BINS]
    return _Layer(scores, top, bins, counts, mass)


def _undecided(layers: Sequence[_Layer], k: int) -> list[tuple[int, int]]:
    """Return for every layer the first bin that may be cut, and the first that must be."""
    bounds = [_bounds(layer) for layer in layers]
    counts = torch.cat([layer.counts for layer in layers])
    lower, upper = (torch.cat(side) for side in zip(*bounds, strict=True))
    # At least k weights reach the first of these, at most k exceed the second.
    reached = _where(lower, counts, k)
    exceeded = _where(upper, counts, k + 1)
    return [(int((low > exceeded).sum()), int((high >= reached).sum())) for low, high in bounds]


def _where(bound: Tensor, counts: Tensor, k: int) -> float:
    """Return the largest bound that bins of at least k weights reach; -inf if there is none."""
    ordered, order = bound.sort(descending=True)
    total = counts[order].cumsum(0)
    at = int(torch.searchsorted(total, torch.tensor([k], device=total.device)))
    return float(ordered[at]) if at < len(ordered) else -math.inf


def _bounds(layer: _Layer) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds of the scores in every bin, in float64, falling."""
    edges = torch.arange(_BINS, dtype=torch.float64, device=layer.mass.device)
    low = (edges + 1 + _EDGE).mul_(-2 * _RANGE / _BINS)
    high = (edges - _EDGE).mul_(-2 * _RANGE / _BINS)
    low[-1] = -math.inf
    sums = layer.mass.cumsum(0)
    above = sums - layer.mass
    return low - sums.log() - _SLACK, high - (above + high.exp()).log() + _SLACK


def _scored(layer: _Layer, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return places and log-scores of the weights in bins ``first`` to ``last - 1``, falling."""
    places = ((layer.bins >= first) & (layer.bins < last)).nonzero().squeeze(1)
    found = (layer.scores[places].double() - layer.top).mul_(2)
    found, order = found.sort(descending=True, stable=True)
    sums = layer.mass[:first].sum() + found.exp().cumsum(0)
    return places[order], found - sums.log()
