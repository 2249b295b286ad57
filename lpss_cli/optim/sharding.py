"""Tensors whose rows are spread over processes, as FSDP2 leaves them (``DTensor``).

``torch.distributed.fsdp.fully_shard`` splits every parameter along its first dimension. There,
rows are neurons, so whatever concerns a single row, such as its sphere, happens in one process.
What concerns all weights together needs communication: :func:`top_k` finds an exact global
threshold with two histograms and one number from each process, whatever the size of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpss_cli.errors import InputError, RunError

# Values of the upper, and of the lower, 16 bits of a key.
_HALF = 1 << 16


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, of which this process may hold only a part."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor; an ordinary tensor is returned as it is."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def check_rows(weight: Tensor, row_dim: int) -> None:
    """Check that no single row of a weight is spread over processes.

    Raises:
        InputError: the weight is sharded along another dimension than that of its rows.
    """
    if not is_sharded(weight):
        return
    for placement in weight.placements:  # type: ignore[attr-defined]  # a DTensor has them
        if not placement.is_replicate() and not placement.is_shard(row_dim):
            raise InputError(
                f"the rows of a weight of shape {tuple(weight.shape)} are spread over processes "
                f"({placement})",
                f"shard it along dimension {row_dim}, as fully_shard does along 0, or pass p=None",
            )


def shard_like_rows(numbers: Tensor, weight: Tensor, row_dim: int) -> Tensor:
    """Return one number per row, sharded as the rows of ``weight`` are.

    Args:
        numbers: those of this process's rows, with kept dimensions.
        weight: the weight whose rows they belong to.
        row_dim: the dimension that counts rows.
    """
    if not is_sharded(weight):
        return numbers
    from torch.distributed.tensor import DTensor

    shape = [size if d == row_dim else 1 for d, size in enumerate(weight.shape)]
    sharded: Any = DTensor.from_local(
        numbers,
        weight.device_mesh,  # type: ignore[attr-defined]  # a DTensor has one
        weight.placements,  # type: ignore[attr-defined]
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )
    return sharded  # type: ignore[no-any-return]


def top_k(scores: Mapping[str, Tensor], k: int, group: Any = None) -> dict[str, Tensor]:
    """Keep exactly the k largest scores over all tensors and all processes.

    Args:
        scores: name → this process's part, float32; no two processes hold the same entry.
        k: number of entries to keep, over all processes together.
        group: the processes; None: all.

    Returns:
        Masks of this process's parts, True = kept. Among equal scores, those of processes with
        lower ranks are kept first.

    Raises:
        RunError: a score is NaN.
    """
    import torch.distributed as dist

    def all_reduce(counts: Tensor) -> Tensor:
        dist.all_reduce(counts, group=group)
        return counts

    keys = torch.cat([_keys(score) for score in scores.values()])
    if int(all_reduce(torch.cat([s.isnan().flatten() for s in scores.values()]).sum())):
        raise RunError("a score is NaN, so nothing can be ranked", "lower the learning rate")
    high = all_reduce(torch.bincount(keys >> 16, minlength=_HALF))
    upper, left = _bin_of_rank(high, k)
    low = all_reduce(torch.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=_HALF))
    lower, left = _bin_of_rank(low, left)
    threshold = (upper << 16) + lower
    keep = keys > threshold
    ties = (keys == threshold).nonzero().squeeze(1)
    counts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(counts, len(ties), group=group)
    own_ties = max(0, left - sum(counts[: dist.get_rank(group)]))
    keep[ties[:own_ties]] = True
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def _keys(score: Tensor) -> Tensor:
    """Return integers in [0, 2³²) in the order of the float32 scores."""
    bits = score.detach().flatten().float().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 == 1, 0xFFFFFFFF - bits, bits + 0x80000000)


def _bin_of_rank(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin of the rank-th largest entry, and how many entries of that bin to keep.

    A rank of 0 lies above all bins.
    """
    cumulative = counts.flip(0).cumsum(0)
    position = min(int(torch.searchsorted(cumulative, rank)), len(counts) - 1)
    above = int(cumulative[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - above
