"""A tensor to its line, sections and planes, and back; arrays hold the tensor's bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lpss_cli.checkpoints.packed import positions as places
from lpss_cli.checkpoints.packed import values
from lpss_cli.checkpoints.packed.coding import Array, need
from lpss_cli.checkpoints.packed.header import Entry, whole
from lpss_cli.checkpoints.packed.positions import Places
from lpss_cli.checkpoints.packed.values import DTYPES, Coded, stored_type


@dataclass(frozen=True)
class Encoded:
    """A tensor as it goes into the file.

    Attributes:
        entry: its line; the lengths of the sections are still missing.
        parts: stored sections that say where the values are.
        planes: the plain planes of scales and values.
    """

    entry: Entry
    parts: list[bytes]
    planes: list[bytes]


def encode_dense(name: str, dtype: str, array: Array) -> Encoded:
    """Store every entry bit for bit."""
    return Encoded(whole(name, dtype, array.shape), [], values.planes(array.reshape(-1)))


def encode_rounded(name: str, dtype: str, array: Array, choice: str) -> Encoded:
    """Store every entry in the type of a choice, where no entry becomes zero or infinite by it.

    Args:
        name: of the tensor.
        dtype: a name of ``values.FLOATS``.
        array: finite, of any shape.
        choice: a name of ``values.WHOLE_CHOICES``.
    """
    flat = array.reshape(-1)
    if not flat.size:
        return encode_dense(name, dtype, array)
    # No code of whole tensors has scales, so that all may be one row.
    rows = np.zeros(flat.size, np.int64)
    coded = values.encode(flat, dtype, rows, 1, values.WHOLE_CHOICES[choice])
    entry = replace(whole(name, dtype, array.shape), values=coded.code)
    return Encoded(entry, [], values.planes(coded.stored))


def encode_sparse(name: str, dtype: str, array: Array, choice: str, compress: bool) -> Encoded:
    """Store where the kept weights are and their values; ``-0.0`` is a zero like the other.

    Args:
        name: of the tensor.
        dtype: a name of ``values.FLOATS``.
        array: finite, of any shape.
        choice: a name of ``values.CHOICES``.
        compress: use zstd where it helps.
    """
    flat = array.reshape(-1)
    if not flat.size:
        return encode_dense(name, dtype, array)
    entry = whole(name, dtype, array.shape)
    positions = np.flatnonzero(flat & 0x7FFF if dtype == "bfloat16" else flat)
    rows = positions // entry.width
    coded = values.encode(flat[positions], dtype, rows, entry.rows, values.CHOICES[choice])
    entry = replace(entry, values=coded.code)
    scaled = values.has_scales(coded.code)
    chosen = encode_grid(entry, positions, coded.stored.itemsize, 4 if scaled else 0, compress)
    scales = coded.scales if chosen.rows is None or not scaled else coded.scales[chosen.rows]
    planes = values.planes(scales) if scaled else []
    for (way, _), (members, inside) in zip(chosen.entry.blocks(), chosen.blocks, strict=True):
        stored = coded.stored if len(members) == len(coded.stored) else coded.stored[members]
        if way.kept > len(stored):  # zeros are stored as values like the others
            filled = np.zeros(way.kept, stored.dtype)
            filled[inside] = stored
            stored = filled
        planes += values.planes(stored)
    return Encoded(chosen.entry, chosen.parts, planes)


def decode(
    entry: Entry, parts: Sequence[bytes], planes: list[bytes], earlier: Sequence[Array]
) -> Array:
    """Return a tensor's bits in its shape.

    Args:
        entry: its line.
        parts: the plain sections that say where the values are.
        planes: the plain planes of scales and values.
        earlier: the tensors before it in the table.

    Raises:
        MalformedError: the sections are not what the line says.
    """
    if entry.same is not None:
        other = earlier[entry.same]
        same = other.dtype == np.dtype(DTYPES[entry.dtype]) and other.shape == entry.shape
        need(same, f"{entry.name!r:.80} is the same as a tensor of another kind")
        copied: Array = other.copy()
        return copied
    coded = _values(entry, planes)
    everything = all(way.coding == "all" for way, _ in entry.choices())
    if everything and entry.split is None and not values.has_scales(entry.values):
        return _finite(entry, values.decode(coded, entry.dtype, coded.scales)).reshape(entry.shape)
    found = decode_grid(entry, parts)
    # Asked of the kept ones alone: the memory of zeros is not touched and so not taken yet.
    kept = _finite(entry, values.decode(coded, entry.dtype, found.rows))
    array = np.zeros(entry.count, DTYPES[entry.dtype])
    array[found.positions] = kept
    return array.reshape(entry.shape)


def _finite(entry: Entry, kept: Array) -> Array:
    need(values.finite(kept, entry.dtype), f"values that are not finite in {entry.name!r:.80}")
    return kept


def _values(entry: Entry, planes: list[bytes]) -> Coded:
    kind = stored_type(entry.values, entry.dtype)
    scales = np.zeros(0, np.float32)
    if values.has_scales(entry.values):
        scales, planes = values.join(planes[:4], np.dtype("<f4")), planes[4:]
    size = kind.itemsize
    blocks = [values.join(planes[i : i + size], kind) for i in range(0, len(planes), size)]
    return Coded(entry.values, blocks[0] if len(blocks) == 1 else np.concatenate(blocks), scales)


# MERGED: The rows and columns of a tensor that hold a kept weight, and the places among them alone.
# MERGED: A network that was made sparse has neurons and inputs without any weight. Once one of
# MERGED: them is named
# MERGED: its entries cost nothing any more.
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


def encode_grid(
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
        thick = thick_columns(inside[1], row_side.way.kept, column_side.way.kept)
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
        entry, cost = replace(entry, split=way), cost + COST + sum(map(len, stored))
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


def decode_grid(entry: Entry, parts: Sequence[bytes]) -> Found:
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


# MERGED: Columns that hold many kept weights, apart from those that hold few.
# MERGED: Inputs are not alike: pixels in the middle of a picture are read by more neurons than
# MERGED: those at its
# MERGED: edge. One code for all gaps fits neither. With the columns in two groups each has a code
# MERGED: of its own,
# MERGED: and so have the values, for much used inputs have other weights too.
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
