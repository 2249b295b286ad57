"""The rows and columns of a tensor that hold a kept weight, and the places among them alone.

A network that was made sparse has neurons and inputs without any weight. Once one of them is named
its entries cost nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lpss_cli.packed import places, split
from lpss_cli.packed.bits import Array
from lpss_cli.packed.entry import Entry
from lpss_cli.packed.places import Places

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
        blocks: for each matrix of live rows and columns: which of the kept weights are in it, and
            their indices there.
        rows: the live rows; None for all.
        cost: bytes in the file, about.
    """

    entry: Entry
    parts: list[bytes]
    blocks: list[tuple[Array, Array]]
    rows: Array | None
    cost: int


def encode(
    entry: Entry, positions: Array, value_bytes: int, row_bytes: int, compress: bool
) -> Chosen:
    """Choose the shortest way: live rows and columns named or not, in one matrix or in two.

    Args:
        entry: of the whole tensor, which is not empty.
        positions: (K,) rising indices of the kept weights.
        value_bytes: bytes of a stored value, also of a zero's.
        row_bytes: bytes that each stored row costs beside its values.
        compress: use zstd where it helps.
    """
    rows, columns = np.divmod(positions, entry.width)
    found: list[Chosen] = []
    sides = (_sides(rows, entry.rows, compress), _sides(columns, entry.width, compress))
    for row_side, column_side in product(*sides):
        live = replace(entry, live_rows=row_side.way, live_columns=column_side.way)
        inside = _number(rows, row_side), _number(columns, column_side)
        cost = row_side.cost + column_side.cost + row_bytes * row_side.way.kept
        start = Chosen(live, [*row_side.parts, *column_side.parts], [], row_side.live, cost)
        whole = _in_blocks(start, inside, None, value_bytes, compress)
        found.append(whole)
        thick = split.thick_columns(inside[1], row_side.way.kept, column_side.way.kept)
        if thick is not None:
            found.append(_in_blocks(start, inside, thick, value_bytes, compress))
    return min(found, key=lambda one: one.cost)


def _in_blocks(
    start: Chosen,
    inside: tuple[Array, Array],
    thick: Array | None,
    value_bytes: int,
    compress: bool,
) -> Chosen:
    """Add to rows and columns where the kept weights are, in one matrix or in two.

    Args:
        start: rows and columns, and what they cost.
        inside: (K,) rows and (K,) columns of the kept weights among the live ones.
        thick: rising numbers of the columns of the first matrix; None for a single one.
        value_bytes: bytes of a stored value.
        compress: use zstd where it helps.
    """
    entry, parts, cost = start.entry, list(start.parts), start.cost
    second = np.zeros(entry.live_columns.kept, np.bool_)
    if thick is not None:
        way, stored = places.shortest(thick, entry.live_columns.kept, None, compress)
        entry, cost = replace(entry, split=way), cost + split.COST + sum(map(len, stored))
        parts += stored
        second[:] = True
        second[thick] = False
    rows, columns = inside
    blocks, ways = [], []
    for group in [second] if thick is None else [second, ~second]:
        numbers = np.cumsum(~group) - 1
        members = np.flatnonzero(~group[columns])
        indices = rows[members] * int((~group).sum()) + numbers[columns[members]]
        count = entry.live_rows.kept * int((~group).sum())
        way, stored = places.shortest(indices, count, value_bytes, compress)
        cost += sum(map(len, stored)) + value_bytes * (way.kept - len(members))
        parts += stored
        blocks.append((members, indices))
        ways.append(way)
    entry = replace(entry, places=ways[0], rest=None if thick is None else ways[1])
    return Chosen(entry, parts, blocks, start.rows, cost)


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
        chosen.append(None if way.coding == "all" else places.decode(way, parts[start:end], count))
        start = end
    blocks = entry.blocks()
    live_rows, live_columns, *thick = chosen[: -len(blocks)]
    sides = [live_columns]
    if thick:
        (first,) = thick
        assert first is not None  # neither `encode` nor a line chooses all columns by a split
        live = np.arange(entry.width) if live_columns is None else live_columns
        sides = [live[first], np.delete(live, first)]
    found = [
        _found(entry, np.arange(way.kept) if inside is None else inside, live_rows, side, width)
        for (way, width), inside, side in zip(blocks, chosen[-len(blocks) :], sides, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    return Found(
        np.concatenate([one.positions for one in found]),
        np.concatenate([one.rows for one in found]),
    )


def _found(
    entry: Entry, inside: Array, live_rows: Array | None, columns: Array | None, width: int
) -> Found:
    """Return where the stored values of one matrix are.

    Args:
        entry: the tensor's line.
        inside: indices in the matrix.
        live_rows: of the tensor; None for all.
        columns: of the tensor that the matrix has; None for all.
        width: number of these.
    """
    rows = inside // max(1, width)
    if live_rows is None and columns is None:
        return Found(inside, rows)
    own = inside - rows * width
    own = own if columns is None else columns[own]
    full = rows if live_rows is None else live_rows[rows]
    return Found(full * entry.width + own, rows)
