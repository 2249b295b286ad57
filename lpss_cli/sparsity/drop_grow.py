"""Dropping and growing single connections of a dynamic sparse network.

Masks are bool tensors, True = kept. They are returned as new tensors, never changed in place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpss_cli.sparsity.lp_geometry import Dims
from lpss_cli.sparsity.masks import to_float32


def cosine_decay(start: float, progress: float, begin: float, end: float) -> float:
    """Fall along half a cosine from ``start`` at progress ``begin`` to 0 at ``end``."""
    t = min(1.0, max(0.0, (progress - begin) / (end - begin))) if end > begin else 1.0
    return start * 0.5 * (1.0 + math.cos(math.pi * t))


def below_row_mean(weight: Tensor, mask: Tensor, fraction: float, dims: Dims) -> Tensor:
    """Select active connections with ``|w| < fraction · mean(|w| over the row's active ones)``.

    This is the drop rule of Li et al. (arXiv:2103.16013). It works neuron by neuron, so that a
    fraction in [0, 1] empties none of them.

    Args:
        weight: the weights.
        mask: True = active.
        fraction: of the mean.
        dims: the dimensions of one row.
    """
    magnitude = to_float32(weight.detach()).abs() * mask
    active = mask.sum(dims, keepdim=True).clamp_min(1)
    mean = magnitude.sum(dims, keepdim=True) / active
    # The mean of equal numbers may be rounded up.
    bound = torch.minimum(fraction * mean, magnitude.amax(dims, keepdim=True))
    return mask & (magnitude < bound)


def top_candidates(scores: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Select the ``count`` candidates with the largest scores, or all if there are fewer.

    Ties are broken by position.

    Args:
        scores: any real tensor.
        candidates: bool tensor of its shape.
        count: how many to select, ≥ 0.
    """
    chosen = torch.zeros_like(candidates).flatten()
    index = candidates.flatten().nonzero().squeeze(1)
    order = scores.flatten()[index].argsort(descending=True, stable=True)
    chosen[index[order[:count]]] = True
    return chosen.view(candidates.shape)


def drop_and_grow(weight: Tensor, mask: Tensor, count: int, growth: Tensor) -> Tensor:
    """Return the mask after ``count`` smallest ``|w|`` were dropped and as many others grown.

    Evci et al., arXiv:1911.11134, algorithm 1. Candidates for growth are the connections that are
    inactive after the drop, so one may be dropped and grown at once, which changes nothing.

    Args:
        weight: the weights, masked ones at 0.
        mask: the present mask.
        count: number of connections to exchange, at most the number of active ones.
        growth: score of every connection, larger is grown first; entries that stay active are
            ignored.
    """
    kept = mask & ~top_candidates(-weight.detach().abs(), mask, count)
    return kept | top_candidates(growth, ~kept, count)


def row_normalized(gradient: Tensor, dims: Dims) -> Tensor:
    """Return ``|g| / ‖g‖₂`` of every row; rows of zeros stay zero."""
    magnitude = to_float32(gradient).abs()
    largest = magnitude.amax(dims, keepdim=True)
    scaled = magnitude / torch.where(largest > 0, largest, 1)
    norm = scaled.square().sum(dims, keepdim=True).sqrt()
    return scaled / torch.where(norm > 0, norm, 1)


def growth_fraction(sparsity: float, target: float, threshold: float, delta: float) -> float:
    """Return the fraction of the dropped connections to grow elsewhere.

    The adaptation of Li et al. (arXiv:2103.16013): ``(1-δ)s/T`` while ``s < T(1-h/2)``, so that
    sparsity rises, and ``(1+δ)s/T`` from there on, so that it falls back toward T.

    Args:
        sparsity: the present sparsity s.
        target: the target T, > 0.
        threshold: the present drop threshold h.
        delta: δ, the strength of the adaptation.
    """
    rising = sparsity < target * (1.0 - threshold / 2.0)
    return (1.0 - delta if rising else 1.0 + delta) * sparsity / target
