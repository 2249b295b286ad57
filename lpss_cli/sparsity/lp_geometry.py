"""Lp norms, signed powers and Hoyer's measure: the geometry that LpSGD moves in.

A *row* is one neuron: all entries of a weight that share one index of ``row_dim`` (dim 0 for
Linear and Conv). Functions take the tensor in its own shape and memory format together with
``dims``, the dimensions that make up a row, and return row scalars with kept dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.sparsity.hoyer import hoyer_of_rows

Dims = tuple[int, ...]

#: The ranges of p that the two update rules take. Below p = 1.03, the exponent 1/(p-1) exceeds 33
#: and the small entries of a row underflow; below 0.2, the row norms n^(1/p) overflow; above 4,
#: there is no sparsity left to steer.
P_RANGES = ((0.2, 1.0), (1.03, 4.0))


def check_p(p: float) -> float:
    """Return p if there is a rule for it.

    Raises:
        InputError: p is outside [0.2, 1] (signed-power rule) and [1.03, 4] (dual rule).
    """
    if any(low <= p <= high for low, high in P_RANGES):
        return p
    raise InputError(
        f"p = {p:g} is outside what the two update rules take",
        "choose 0.2 ≤ p ≤ 1 (signed-power rule) or 1.03 ≤ p ≤ 4 (dual rule); "
        "1.07 to 1.3 suit sparsities of 98 to 50 %",
    )


def dual_exponents(p: float) -> tuple[float, float]:
    """Return (q, a) of the dual rule, p > 1: ``q = p/(p-1)``, ``a = 1/(p-1) = q - 1``."""
    a = 1.0 / (p - 1.0)
    if abs(a - round(a)) < 1e-9:  # 1/(1.2-1) is 5.000000000000001
        a = float(round(a))
    return a + 1.0, a


def snap_p(p: float) -> float:
    """Return 1 + 1/k for a p within 5e-5 of it: 1.0714, as typed, means 15/14.

    The powers of the dual rule are then a few multiplications.
    """
    if p <= 1 or p > 2:
        return p
    nearest = 1.0 + 1.0 / round(1.0 / (p - 1.0))
    return nearest if abs(nearest - p) < 5e-5 else p


def row_dims(weight: Tensor, row_dim: int = 0) -> Dims:
    """Return the dimensions that make up one row of ``weight``."""
    return tuple(d for d in range(weight.dim()) if d != row_dim)


def fan_in(weight: Tensor, row_dim: int = 0) -> int:
    """Return the number of entries of one row of ``weight``."""
    return math.prod(weight.shape[d] for d in row_dims(weight, row_dim))


def power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x ** exponent`` for x ≥ 0, as a new tensor; no gradient flows through it.

    Integer exponents up to 64 are computed by squarings and multiplications, half-integers with
    one more square root; all others by ``torch.pow``, which is about ten times slower on a CPU.
    """
    doubled = round(2 * exponent)
    if doubled != 2 * exponent or not 1 <= doubled <= 128:
        return x.pow(exponent)
    bits, half = divmod(doubled, 2)
    result = x.sqrt() if half else None
    base = x
    while bits:
        if bits & 1:
            result = base if result is None else _times(result, base, x)
        bits >>= 1
        if bits:
            base = base.square() if base is x or base is result else base.square_()
    assert result is not None  # doubled >= 1
    return result.clone() if result is x else result


def _times(result: Tensor, base: Tensor, x: Tensor) -> Tensor:
    """Multiply in place, unless ``result`` is the caller's: allocation costs as much again."""
    return result * base if result is x else result.mul_(base)


def lp_norm(x: Tensor, p: float, dims: Dims) -> Tensor:
    """Return the (quasi-)norms ``(Σ|x|^p)^(1/p)`` of rows, dimensions kept; rows of zeros give 0.

    Rows are divided by their largest magnitude first: q = 15 underflows fp32 otherwise.
    """
    magnitude = x.abs()
    largest = magnitude.amax(dims, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    return largest * power(magnitude / scale, p).sum(dims, keepdim=True).pow(1.0 / p)


def hoyer(weight: Tensor, row_dim: int = 0) -> Tensor:
    """Return Hoyer's measure of every row: ``(√n - ‖w‖₁/‖w‖₂)/(√n - 1)`` (Hoyer, JMLR 5, 2004).

    Returns:
        Float64 tensor of shape (rows,), 0 for a flat row, 1 for a single nonzero. NaN where it
        is undefined: rows of zeros (dead neurons) and rows of one entry.
    """
    magnitudes = weight.detach().movedim(row_dim, 0).flatten(1).double().abs()
    return hoyer_of_rows(magnitudes, _row_norm, may_underflow=weight.dtype == torch.float64)


def _row_norm(rows: Tensor, order: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, order, 1)
    return norm
