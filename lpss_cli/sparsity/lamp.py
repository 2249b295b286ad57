"""Selection of the k weights with the largest LAMP scores, without sorting all of them.

Lee et al., arXiv:2010.07611: within a layer the score of a weight is
``w_i² / Σ_{|w_j| ≥ |w_i|} w_j²``. A smaller weight has a smaller score, so the scores in a bin of
magnitudes are bounded once the sums of squares of the bins above it are known. Bins that are
certainly kept or certainly pruned need no further work. The others, a few in each layer, are scored
and sorted exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bins of a layer, equally wide in log|w|; the last one takes everything below the others.
_BINS, _RANGE = 4096, 40.0
# How far rounding may move a weight across the edge of a bin, in bins; how far it may move a bound.
_EDGE, _SLACK = 0.02, 1e-9


def lamp_masks(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """Keep the k largest LAMP scores over all layers; of equal ones, the first.

    Args:
        scores: log|w| of every weight, one tensor per layer, fp32 or longer; -inf is never kept.
            Neither NaN nor +inf.
        k: number of weights to keep, or fewer if fewer are finite.

    Returns:
        Boolean masks of the scores' shapes, True = kept.
    """
    masks = {name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()}
    layers = {
        name: _bin_layer(s.flatten()) for name, s in scores.items() if bool((s > -math.inf).any())
    }
    if not layers:
        return masks
    spans = _undecided_bins(list(layers.values()), k)
    undecided = []
    for layer, (first, last) in zip(layers.values(), spans, strict=True):
        k -= int(layer.counts[:first].sum())
        undecided.append(_score_bins(layer, first, last))
    ranked = torch.cat([layer_scores for _, layer_scores in undecided])
    keep = torch.zeros_like(ranked, dtype=torch.bool)
    keep[ranked.argsort(descending=True, stable=True)[:k]] = True
    parts = keep.split([len(layer_scores) for _, layer_scores in undecided])
    for name, (first, _), (indices, _), part in zip(layers, spans, undecided, parts, strict=True):
        flat = layers[name].bins < first
        flat[indices[part]] = True
        masks[name] = flat.view(scores[name].shape)
    return masks


@dataclass(frozen=True)
class _BinnedLayer:
    """One layer in bins of decreasing magnitude, with the largest weight in the first bin.

    Attributes:
        scores: log|w|, flat.
        top: the largest of them.
        bins: the bin of each; weights of -inf are beyond the last bin.
        counts, mass: per bin the number of weights and ``Σ exp(2(log|w| - top))``.
    """

    scores: Tensor
    top: Tensor
    bins: Tensor
    counts: Tensor
    mass: Tensor


def _bin_layer(scores: Tensor) -> _BinnedLayer:
    top = scores.max()
    # The same operations on every weight, so a larger weight is never in a later bin.
    depth = (top - scores).mul_(_BINS / _RANGE)
    bins = depth.clamp_(max=_BINS - 1).to(torch.int16).masked_fill_(scores == -math.inf, _BINS)
    squares = (scores.double() - top).mul_(2).exp_()
    counts = torch.bincount(bins, minlength=_BINS + 1)[:_BINS]
    mass = torch.bincount(bins, squares, minlength=_BINS + 1)[:_BINS]
    return _BinnedLayer(scores, top, bins, counts, mass)


def _undecided_bins(layers: Sequence[_BinnedLayer], k: int) -> list[tuple[int, int]]:
    """Return for every layer the first bin that may be pruned, and the first that must be."""
    bounds = [_bounds(layer) for layer in layers]
    counts = torch.cat([layer.counts for layer in layers])
    lower, upper = (torch.cat(side) for side in zip(*bounds, strict=True))
    # At least k scores reach the first of these, and at most k exceed the second.
    reached = _kth_largest(lower, counts, k)
    exceeded = _kth_largest(upper, counts, k + 1)
    return [(int((low > exceeded).sum()), int((high >= reached).sum())) for low, high in bounds]


def _kth_largest(bounds: Tensor, counts: Tensor, k: int) -> float:
    """Return the largest bound that bins of at least k weights reach; -inf if there is none."""
    ordered, order = bounds.sort(descending=True)
    total = counts[order].cumsum(0)
    index = int(torch.searchsorted(total, torch.tensor([k], device=total.device)))
    return float(ordered[index]) if index < len(ordered) else -math.inf


def _bounds(layer: _BinnedLayer) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds of the log-scores in every bin, float64, decreasing."""
    edges = torch.arange(_BINS, dtype=torch.float64, device=layer.mass.device)
    low = (edges + 1 + _EDGE).mul_(-2 * _RANGE / _BINS)
    high = (edges - _EDGE).mul_(-2 * _RANGE / _BINS)
    low[-1] = -math.inf
    sums = layer.mass.cumsum(0)
    above = sums - layer.mass
    return low - sums.log() - _SLACK, high - (above + high.exp()).log() + _SLACK


def _score_bins(layer: _BinnedLayer, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return indices and log-scores of the weights in bins [first, last), decreasing."""
    indices = ((layer.bins >= first) & (layer.bins < last)).nonzero().squeeze(1)
    log_squares = (layer.scores[indices].double() - layer.top).mul_(2)
    log_squares, order = log_squares.sort(descending=True, stable=True)
    sums = layer.mass[:first].sum() + log_squares.exp().cumsum(0)
    return indices[order], log_squares - sums.log()
