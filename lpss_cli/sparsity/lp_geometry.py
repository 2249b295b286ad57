"""Lp norms, signed powers and Hoyer's measure: the geometry LpSGD moves in.

A *row* is one neuron: all entries of a weight that share one index of ``row_dim`` (dim 0 for
Linear and Conv). Functions take the tensor in its own shape and memory format together with
``dims``, the dimensions that make up a row, and return row scalars with kept dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.sparsity.hoyer import hoyer_of

Dims = tuple[int, ...]

# Below p = 1.03 the exponent 1/(p-1) passes 33 and what is small in a row underflows; below 0.2 row
# norms n^(1/p) overflow; above 4 there is no sparsity left to steer.
P_RANGES = ((0.2, 1.0), (1.03, 4.0))


def check_p(p: float) -> float:
    """Return p if a rule exists for it.

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
    """Take p within 5e-5 of 1 + 1/k as exactly that: 1.0714, typed, means 15/14.

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
    """Count the entries of one row of ``weight``."""
    return math.prod(weight.shape[d] for d in row_dims(weight, row_dim))


def power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent`` for x ≥ 0, as a new tensor; no gradient flows through it.

    Integer exponents up to 64 are squarings and multiplications, half-integers one square root
    more; everything else is ``torch.pow``, about ten times dearer on a CPU.
    """
    doubled = round(2 * exponent)
    if doubled != 2 * exponent or not 1 <= doubled <= 128:
        return x.pow(exponent)
    whole, half = divmod(doubled, 2)
    result = x.sqrt() if half else None
    base = x
    while whole:
        if whole & 1:
            result = base if result is None else _times(result, base, x)
        whole >>= 1
        if whole:
            base = base.square() if base is x or base is result else base.square_()
    assert result is not None  # doubled >= 1
    return result.clone() if result is x else result


def _times(result: Tensor, base: Tensor, x: Tensor) -> Tensor:
    """Multiply in place what is not the caller's: new memory costs as much as the product."""
    return result * base if result is x else result.mul_(base)


def lp_norm(x: Tensor, p: float, dims: Dims) -> Tensor:
    """Row (quasi-)norms ``(Σ|x|^p)^(1/p)``, kept dimensions; rows of zeros give 0.

    Rows are scaled by their largest magnitude first: q = 15 underflows fp32 otherwise.
    """
    magnitude = x.abs()
    largest = magnitude.amax(dims, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    return largest * power(magnitude / scale, p).sum(dims, keepdim=True).pow(1.0 / p)


def hoyer(weight: Tensor, row_dim: int = 0) -> Tensor:
    """Hoyer's measure of every row: ``(√n - ‖w‖₁/‖w‖₂)/(√n - 1)`` (Hoyer, JMLR 5, 2004).

    Returns:
        Float64 tensor of shape (rows,), 0 for a flat row, 1 for a single non-zero. NaN where it
        is undefined: rows of zeros (dead neurons) and rows of one entry.
    """
    rows = weight.detach().movedim(row_dim, 0).flatten(1).double()
    if weight.dtype == torch.float64 and rows.shape[1]:
        # Scaled by the row maximum so that the squares of tiny weights do not underflow; those of
        # shorter numbers do not.
        rows = rows / rows.abs().amax(1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(rows, 2, 1)
    return hoyer_of(rows.abs().sum(1), norm, rows.shape[1])
