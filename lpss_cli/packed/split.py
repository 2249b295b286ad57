"""Columns that hold many kept weights, apart from those that hold few.

Inputs are not alike: pixels in the middle of a picture are read by more neurons than those at its
edge. One code for all gaps fits neither. With the columns in two groups each has a code of its own,
and so have the values, for much used inputs have other weights too.
"""

from __future__ import annotations

import numpy as np

from lpss_cli.packed.bits import Array

#: What two groups cost beside their sections, about: words in the header, and a table of zstd for
#: the second group's high bytes.
COST = 100


def thick_columns(columns: Array, rows: int, count: int) -> Array | None:
    """Find the columns to be coded apart, where it may be worth it.

    The threshold on a column's kept weights is the one under which two masks of constant density,
    and the mask that tells the groups apart, have the least entropy together.

    Args:
        columns: (K,) column of each kept weight, in [0, count).
        rows: number of rows.
        count: number of columns.

    Returns:
        The rising numbers of the columns with more kept weights; None where one group is as good.
    """
    if rows < 2 or count < 2:
        return None
    kept = np.bincount(columns, minlength=count)
    order = np.argsort(-kept, kind="stable")
    first = np.cumsum(kept[order])[:-1]  # kept weights of the 1, 2, … thickest columns
    sizes = np.arange(1, count)
    total = len(columns)
    bits = (
        _entropy(first, sizes * rows)
        + _entropy(total - first, (count - sizes) * rows)
        + _entropy(sizes, np.full(count - 1, count))
    )
    best = int(bits.argmin())
    whole = float(_entropy(np.array([total]), np.array([count * rows]))[0])
    return np.sort(order[: best + 1]) if whole - bits[best] > 8 * COST else None


def _entropy(kept: Array, count: Array) -> Array:
    """Return the bits of saying which ``kept`` of ``count`` > 0, elementwise: count·H(density)."""
    density = kept / count
    found: Array = -count * (_plogp(density) + _plogp(1 - density))
    return found


def _plogp(part: Array) -> Array:
    found: Array = part * np.log2(np.where(part > 0, part, 1))
    return found
