"""The rows and columns of a tensor that hold a kept weight, and the places among them alone.

A network that was made sparse has neurons and inputs without any weight. Once one of them is named
its entries cost nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from . import places
from .bits import Array
from .entry import Entry
from .places import Places

# What a choice of rows or columns adds to the header, about, in bytes.
_NAMED = 12


@dataclass(frozen=True)
class _Side:
    """The rows, or the columns, that count as live; ``live`` is None for all of them."""

    way: Places
    parts: list[bytes]
    live: Array | None = None

    @property
    def cost(self) -> int:
        return sum(map(len, self.parts)) + (_NAMED if self.live is not None else 0)


@dataclass(frozen=True)
class Chosen:
    """The shortest way to say where the kept weights of a tensor are.

    Attributes:
        entry: with the choices in it.
        parts: their stored sections.
        inside: (K,) indices of the kept weights in the matrix of live rows and columns.
        rows: the live rows; None for all.
    """

    entry: Entry
    parts: list[bytes]
    inside: Array
    rows: Array | None


def encode(
    entry: Entry, positions: Array, value_bytes: int, row_bytes: int, compress: bool
) -> Chosen:
    """Choose the shortest of four ways: with or without naming live rows, and live columns.

    Args:
        entry: of the whole tensor, which is not empty.
        positions: (K,) rising indices of the kept weights.
        value_bytes: bytes of a stored value, also of a zero's.
        row_bytes: bytes that each stored row costs beside its values.
        compress: use zstd where it helps.
    """
    rows, columns = np.divmod(positions, entry.width)
    found: list[tuple[int, Chosen]] = []
    sides = (_sides(rows, entry.rows, compress), _sides(columns, entry.width, compress))
    for row_side, column_side in product(*sides):
        inside = _number(rows, row_side) * column_side.way.kept + _number(columns, column_side)
        count = row_side.way.kept * column_side.way.kept
        way, parts = places.shortest(inside, count, value_bytes, compress)
        fill = value_bytes * (way.kept - len(positions)) + row_bytes * row_side.way.kept
        cost = row_side.cost + column_side.cost + sum(map(len, parts)) + fill
        chosen = replace(entry, live_rows=row_side.way, live_columns=column_side.way, places=way)
        parts = [*row_side.parts, *column_side.parts, *parts]
        found.append((cost, Chosen(chosen, parts, inside, row_side.live)))
    return min(found, key=lambda one: one[0])[1]


def _sides(indices: Array, count: int, compress: bool) -> list[_Side]:
    """Return the ways to count one side: all of it, and the live ones if there are others."""
    everything = _Side(Places("all", count), [])
    live = np.flatnonzero(np.bincount(indices, minlength=count))
    if len(live) == count:
        return [everything]
    return [everything, _Side(*places.shortest(live, count, None, compress), live)]


def _number(indices: Array, side: _Side) -> Array:
    """Number rows or columns among the live ones."""
    if side.live is None:
        return indices
    numbers = np.empty(int(side.live[-1]) + 1 if len(side.live) else 0, np.int64)
    numbers[side.live] = np.arange(len(side.live))
    renumbered: Array = numbers[indices]
    return renumbered


@dataclass(frozen=True)
class Found:
    """Where the stored values of a tensor are.

    Attributes:
        positions: (K,) indices in row-major order.
        rows: (K,) number of each one's row among the live ones.
    """

    positions: Array
    rows: Array


def decode(entry: Entry, parts: Sequence[bytes]) -> Found:
    """Read where the stored values are; the inverse of ``encode``, from plain sections.

    Raises:
        MalformedError: the sections are not what the line says.
    """
    chosen, start = [], 0
    for way, count in entry.choices():
        end = start + len(way.lengths(count))
        whole = way.coding == "all" and way is not entry.places
        chosen.append(None if whole else places.decode(way, parts[start:end], count))
        start = end
    live_rows, live_columns, inside = chosen
    assert inside is not None
    rows = inside // max(1, entry.live_columns.kept)
    if live_rows is None and live_columns is None:
        return Found(inside, rows)
    columns = inside - rows * entry.live_columns.kept
    columns = columns if live_columns is None else live_columns[columns]
    full = rows if live_rows is None else live_rows[rows]
    return Found(full * entry.width + columns, rows)
