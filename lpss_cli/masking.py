"""Setting the masked entries of a tensor to zero, every step of every sparse run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Entries at a time: the mask is widened to the size of the entries on its way.
_BLOCK = 1 << 20


@torch.no_grad()
def keep_only(values: Tensor, mask: Tensor) -> None:
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
