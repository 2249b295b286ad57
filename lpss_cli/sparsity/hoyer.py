"""Hoyer's measure of sparsity, for NumPy arrays and PyTorch tensors alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Rows = TypeVar("Rows", "NDArray[Any]", "Tensor")


def hoyer_of(length: Rows, norm: Rows, n: int) -> Rows:
    """Return Hoyer's measure of rows: ``(√n - ‖w‖₁/‖w‖₂)/(√n - 1)`` (Hoyer, JMLR 5, 2004).

    Args:
        length: 1-norms of the rows, in float64.
        norm: their 2-norms, in float64.
        n: entries of a row.

    Returns:
        0 for a flat row, 1 for a single nonzero. NaN where it is undefined: rows of zeros (dead
        neurons) and rows of one entry.
    """
    if n < 2:
        return length * math.nan
    measured: Rows = (math.sqrt(n) - length / norm) / (math.sqrt(n) - 1.0)
    return measured.clip(0.0)  # a flat row may round to -1e-17


def hoyer_of_rows(
    magnitudes: Rows, norm: Callable[[Rows, float], Rows], *, may_underflow: bool
) -> Rows:
    """Return Hoyer's measure of rows, see :func:`hoyer_of`.

    Args:
        magnitudes: of the weights, of shape (rows, n), in float64.
        norm: (magnitudes, order) → the norm of every row, for the orders 2 and infinity.
        may_underflow: whether the weights were in float64, where the squares of tiny weights
            underflow; those of weights in shorter formats do not.
    """
    n = magnitudes.shape[1]
    if may_underflow and n:
        magnitudes = magnitudes / norm(magnitudes, math.inf)[:, None]
    return hoyer_of(magnitudes.sum(1), norm(magnitudes, 2), n)
