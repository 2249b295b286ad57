"""Exact selection: which k of N weights are kept, and how a mask is applied.

Scores are *log-saliencies*, larger is kept, because weights of small p underflow long before their
ranks do. A score of -inf marks a weight that is zero and stays zero. Ties are broken by position,
layer by layer, so a selection is the same on every machine and holds exactly k weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lpss_cli.errors import RunError
from lpss_cli.sparsity.lamp import lamp_masks

Scores = Mapping[str, Tensor]
"""Layer → log-saliencies of its weights, fp32 or longer."""

Masks = dict[str, Tensor]
"""Layer → bool tensor, True = kept."""

#: Larger than the difference between the log-saliencies of any two kept weights: scores that are
#: lowered by it rank behind all others.
RANK_OFFSET = 10_000.0

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Entries per block of apply_mask_, which widens the mask to the size of the entries.
_BLOCK = 1 << 20


def to_float32(x: Tensor) -> Tensor:
    """Return a tensor in fp32 or longer: itself, unless it has half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_magnitude(weight: Tensor) -> Tensor:
    """Return ``log|w|`` in fp32 or longer.

    The logarithm of a half-precision number has fewer digits than the number itself: different
    weights would rank alike, and the bins of LAMP need more digits than that.
    """
    return to_float32(weight.detach()).abs().log()


def select_masks(
    scores: Scores, k: int, ranking: str = "lamp", layer_counts: Mapping[str, int] | None = None
) -> Masks:
    """Keep the k best weights, or fewer if fewer than k scores are finite.

    Args:
        scores: log-saliencies of all prunable weights.
        k: number of weights to keep over all layers.
        ranking: one of ``RANKINGS``; it divides what the layers in ``layer_counts`` leave.
        layer_counts: layer → number of weights to keep there, independently of the ranking.

    Returns:
        Masks of the scores' shapes, with exactly k True in total.

    Raises:
        RunError: a score is NaN or +inf.
    """
    # The maximum of a tensor that holds NaN is NaN.
    if not all(bool(s.max() < math.inf) for s in scores.values() if s.numel()):
        raise RunError(
            "a weight is NaN or infinite, so nothing can be ranked", "lower --lr and train again"
        )
    fixed = layer_counts or {}
    masks = {name: top_k({name: scores[name]}, count)[name] for name, count in fixed.items()}
    ranked = {name: s for name, s in scores.items() if name not in fixed}
    if ranked:
        masks |= RANKINGS[ranking](ranked, k - sum(fixed.values()))
    return {name: masks[name] for name in scores}


def top_k(scores: Scores, k: int) -> Masks:
    """Keep the k largest scores over all layers together."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    k = min(k, int(flat.isfinite().sum()))
    if k == 0:
        return {name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()}
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    keep = flat > threshold
    missing = k - int(keep.sum())
    ties = (flat == threshold).nonzero().squeeze(1)
    keep[ties[:missing]] = True
    parts = torch.split(keep, [s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def top_k_per_layer(scores: Scores, counts: Sequence[int]) -> Masks:
    """Keep a given number of largest scores in every layer."""
    masks: Masks = {}
    for (name, s), count in zip(scores.items(), counts, strict=True):
        masks |= top_k({name: s}, count)
    return masks


def allocate(k: int, shares: Sequence[float], capacity: Sequence[int]) -> list[int]:
    """Divide k among layers in proportion to ``shares``, none above its capacity.

    What a full layer cannot take is redistributed among the others in the same proportion. The
    fractions go to the largest remainders, so the counts sum to ``min(k, Σcapacity)`` exactly.
    """
    k = min(k, sum(capacity))
    open_layers = [i for i, c in enumerate(capacity) if c > 0]
    exact = [0.0] * len(shares)
    left = float(k)
    while open_layers:
        unit = left / sum(shares[i] for i in open_layers)
        full = [i for i in open_layers if shares[i] * unit >= capacity[i]]
        for i in full or open_layers:
            exact[i] = float(capacity[i]) if full else shares[i] * unit
            left -= exact[i]
        if not full:
            break
        open_layers = [i for i in open_layers if i not in full]
    counts = [min(c, math.floor(e)) for e, c in zip(exact, capacity, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while sum(counts) < k:
        for i in by_remainder:
            if sum(counts) < k and counts[i] < capacity[i]:
                counts[i] += 1
    return counts


def proportional_counts(scores: Scores, k: int, share: Callable[[Tensor], float]) -> list[int]:
    """Divide k among the layers in proportion to ``share``, at most their finite scores each."""
    capacity = [int(s.isfinite().sum()) for s in scores.values()]
    return allocate(k, [share(s) for s in scores.values()], capacity)


def erk_share(scores: Tensor) -> float:
    """Return the Σdims of a layer, its share under Erdős-Rényi-Kernel densities.

    Evci et al., arXiv:1911.11134.
    """
    return float(sum(scores.shape))


def _uniform(scores: Scores, k: int) -> Masks:
    return top_k_per_layer(scores, proportional_counts(scores, k, lambda s: float(s.numel())))


def _erk(scores: Scores, k: int) -> Masks:
    return top_k_per_layer(scores, proportional_counts(scores, k, erk_share))


def _balanced(scores: Scores, k: int) -> Masks:
    floors = [count // 2 for count in proportional_counts(scores, k, erk_share)]
    floor = top_k_per_layer(scores, floors)
    rest = {name: s.masked_fill(floor[name], -math.inf) for name, s in scores.items()}
    free = top_k(rest, k - sum(int(m.sum()) for m in floor.values()))
    return {name: floor[name] | free[name] for name in scores}


#: Ranking → selector. ``lamp``: global LAMP score. ``balanced``: global magnitude, but every layer
#: keeps at least half its ERK share. ``magnitude``: global magnitude alone. ``uniform``: the same
#: density in every layer. ``erk``: ERK densities.
RANKINGS: dict[str, Callable[[Scores, int], Masks]] = {
    "lamp": lamp_masks,
    "balanced": _balanced,
    "magnitude": top_k,
    "uniform": _uniform,
    "erk": _erk,
}


@torch.no_grad()
def apply_mask_(values: Tensor, mask: Tensor) -> None:
    """Set ``values`` to exactly +0 where ``mask`` is False, in place; NaN and infinities too.

    The bits of every entry are multiplied by 0 or 1 as an integer. ``masked_fill_`` branches on
    every entry, which takes a CPU ten to twenty times as long.

    Args:
        values: floating-point tensor of any layout.
        mask: bool tensor of its shape, True = kept.
    """
    bits = values.detach().view(_INTEGERS[values.element_size()])
    for block, kept in _blocks(bits, mask):
        block.mul_(kept)


def _blocks(*tensors: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """Split tensors of one shape into blocks of rows."""
    first = tensors[0]
    if first.numel() <= _BLOCK:
        return [tensors]
    rows = max(1, _BLOCK * len(first) // first.numel())
    return list(zip(*(t.split(rows) for t in tensors), strict=True))
