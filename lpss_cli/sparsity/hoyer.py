"""Hoyer's measure of sparsity from the norms of rows, for NumPy's arrays and PyTorch's tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Rows = TypeVar("Rows", "NDArray[Any]", "Tensor")


def hoyer_of(length: Rows, norm: Rows, n: int) -> Rows:
    """Hoyer's measure of rows: ``(√n - ‖w‖₁/‖w‖₂)/(√n - 1)`` (Hoyer, JMLR 5, 2004).

    Args:
        length: 1-norms of the rows, in float64.
        norm: their 2-norms, in float64.
        n: entries of a row.

    Returns:
        0 for a flat row, 1 for a single non-zero. NaN where it is undefined: rows of zeros (dead
        neurons) and rows of one entry.
    """
    if n < 2:
        return length * math.nan
    measured: Rows = (math.sqrt(n) - length / norm) / (math.sqrt(n) - 1.0)
    return measured.clip(0.0)  # a flat row may round to -1e-17
