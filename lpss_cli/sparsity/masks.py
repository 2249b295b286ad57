"""Exact selection: which k of N weights are kept.

Scores are *log-saliencies* (larger is kept; -inf is a weight that is zero and stays so), because
weights of small p underflow long before their ranks do. Ties are broken by position, layer by
layer, so a selection is the same on every machine and holds exactly k weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lpss_cli.errors import RunError
from lpss_cli.sparsity.lamp import lamp_masks

Scores = Mapping[str, Tensor]
Masks = dict[str, Tensor]

#: More than any two log-saliencies of kept weights differ by: what is lowered by so much ranks
#: behind all else.
RANK_OFFSET = 10_000.0


def to_float32(x: Tensor) -> Tensor:
    """Return a tensor in fp32 or longer: itself, unless it is of half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_magnitude(weight: Tensor) -> Tensor:
    """Return ``log|w|`` in fp32 or longer.

    The logarithm of a half-precision number has fewer digits than the number: weights that differ
    would rank alike, and the bins of LAMP need more of them than that.
    """
    return to_float32(weight.detach()).abs().log()


def select_masks(
    scores: Scores, k: int, ranking: str = "lamp", own: Mapping[str, int] | None = None
) -> Masks:
    """Keep the k best weights; fewer when fewer than k scores are finite.

    Args:
        scores: log-saliency of every prunable weight, one tensor a layer, fp32 or longer.
        k: number of weights to keep over all layers.
        ranking: one of ``RANKINGS``; it divides what the layers with a count of their own leave.
        own: layer → number of weights to keep there, whatever the ranking says.

    Returns:
        Boolean masks of the scores' shapes, True = kept, with exactly k True in all.

    Raises:
        RunError: a score is NaN or +inf.
    """
    # The maximum of a tensor that holds NaN is NaN.
    if not all(bool(s.max() < math.inf) for s in scores.values() if s.numel()):
        raise RunError(
            "a weight is NaN or infinite, so nothing can be ranked", "lower --lr and train again"
        )
    own = own or {}
    masks = {name: top_k({name: scores[name]}, count)[name] for name, count in own.items()}
    shared = {name: s for name, s in scores.items() if name not in own}
    if shared:
        masks |= RANKINGS[ranking](shared, k - sum(own.values()))
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


def allocate(k: int, shares: Sequence[float], capacity: Sequence[int]) -> list[int]:
    """Divide k among layers in proportion to ``shares``, none above its capacity.

    What a full layer cannot take is redistributed among the others in the same proportion; the
    fractions go to the largest remainders, so the parts sum to ``min(k, Σcapacity)`` exactly.
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
    parts = [min(c, math.floor(e)) for e, c in zip(exact, capacity, strict=True)]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    while sum(parts) < k:
        for i in by_remainder:
            if sum(parts) < k and parts[i] < capacity[i]:
                parts[i] += 1
    return parts


def proportional_counts(scores: Scores, k: int, share: Callable[[Tensor], float]) -> list[int]:
    """Divide k among the layers in proportion to ``share`` of each, never above what it has."""
    capacity = [int(s.isfinite().sum()) for s in scores.values()]
    return allocate(k, [share(s) for s in scores.values()], capacity)


def erk_share(scores: Tensor) -> float:
    """Kept weights ∝ Σdims: Erdős-Rényi-Kernel densities (Evci et al., arXiv:1911.11134)."""
    return float(sum(scores.shape))


def top_k_per_layer(scores: Scores, parts: Sequence[int]) -> Masks:
    """Keep the given number of largest scores in every layer."""
    masks: Masks = {}
    for (name, s), part in zip(scores.items(), parts, strict=True):
        masks |= top_k({name: s}, part)
    return masks


def _uniform(scores: Scores, k: int) -> Masks:
    return top_k_per_layer(scores, proportional_counts(scores, k, lambda s: float(s.numel())))


def _erk(scores: Scores, k: int) -> Masks:
    return top_k_per_layer(scores, proportional_counts(scores, k, erk_share))


def _balanced(scores: Scores, k: int) -> Masks:
    floor = top_k_per_layer(
        scores, [part // 2 for part in proportional_counts(scores, k, erk_share)]
    )
    rest = {name: s.masked_fill(floor[name], -math.inf) for name, s in scores.items()}
    free = top_k(rest, k - sum(int(m.sum()) for m in floor.values()))
    return {name: floor[name] | free[name] for name in scores}


#: ranking name -> selector. ``lamp``: global LAMP score. ``balanced``: global magnitude, but every
#: layer keeps at least half its ERK share. ``magnitude``: global magnitude alone. ``uniform``: the
#: same density in every layer. ``erk``: ERK densities.
RANKINGS: dict[str, Callable[[Scores, int], Masks]] = {
    "lamp": lamp_masks,
    "balanced": _balanced,
    "magnitude": top_k,
    "uniform": _uniform,
    "erk": _erk,
}


# MERGED: Setting the masked entries of a tensor to zero, every step of every sparse run.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Entries at a time: the mask is widened to the size of the entries on its way.
_BLOCK = 1 << 20


@torch.no_grad()
def apply_mask_(values: Tensor, mask: Tensor) -> None:
    """Set ``values`` to exactly +0 where ``mask`` is False, in place; NaN and infinities too.

    The bits of every entry are multiplied by 0 or 1 as an integer. ``masked_fill_`` decides entry
    by entry, which takes a CPU ten to twenty times as long.

    Args:
        values: floating-point tensor of any layout.
        mask: bool tensor of its shape, True = kept.
    """
    bits = values.detach().view(_INTEGERS[values.element_size()])
    for part, kept in _parts(bits, mask):
        part.mul_(kept)


def _parts(*tensors: Tensor) -> Sequence[tuple[Tensor, ...]]:
    first = tensors[0]
    if first.numel() <= _BLOCK:
        return [tensors]
    rows = max(1, _BLOCK * len(first) // first.numel())
    return list(zip(*(t.split(rows) for t in tensors), strict=True))
