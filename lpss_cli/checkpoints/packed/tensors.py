"""From a tensor to its line, sections and planes, and back; arrays hold the tensor's bits.

A network that was made sparse has dead neurons and unused inputs. Once their rows or columns are
named as dead, their entries cost nothing more.

Inputs differ: pixels in the middle of a picture are read by more neurons than those at its edge,
and no single code for gaps fits both. With the columns in two groups, each group has a code of its
own, and planes of its own, because the weights of heavily used inputs have other values too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from lpss_cli.checkpoints.packed import values
from lpss_cli.checkpoints.packed.coding import Array, require
from lpss_cli.checkpoints.packed.header import EncodedTensor, Entry, dense_entry
from lpss_cli.checkpoints.packed.positions import Selection, decode_selection, encode_selection
from lpss_cli.checkpoints.packed.values import DTYPES, CodedValues, stored_type

#: Bytes that a second group costs beside its sections, about: text in the header, and a zstd table
#: for the high bytes of its values.
SPLIT_COST = 100
# Bytes that a selection of rows or columns adds to the header, about.
_SELECTION_COST = 12


def encode_dense(name: str, dtype: str, array: Array) -> EncodedTensor:
    """Store every entry bit for bit."""
    planes = values.split_planes(array.reshape(-1))
    return EncodedTensor(dense_entry(name, dtype, array.shape), [], planes)


def encode_rounded(name: str, dtype: str, array: Array, choice: str) -> EncodedTensor:
    """Store every entry rounded, unless an entry would become zero or infinite.

    Args:
        name: name of the tensor.
        dtype: one of ``values.FLOATS``.
        array: finite numbers of any shape.
        choice: a key of ``values.WHOLE_CHOICES``.
    """
    flat = array.reshape(-1)
    if not flat.size:
        return encode_dense(name, dtype, array)
    # No code for whole tensors has scales, so all entries may count as one row.
    rows = np.zeros(flat.size, np.int64)
    coded = values.encode(flat, dtype, rows, 1, values.WHOLE_CHOICES[choice])
    entry = replace(dense_entry(name, dtype, array.shape), values=coded.code)
    return EncodedTensor(entry, [], values.split_planes(coded.stored))


def encode_sparse(
    name: str, dtype: str, array: Array, choice: str, compress: bool
) -> EncodedTensor:
    """Store the positions and values of the nonzero entries; ``-0.0`` counts as zero.

    Args:
        name: name of the tensor.
        dtype: one of ``values.FLOATS``.
        array: finite numbers of any shape.
        choice: a key of ``values.CHOICES``.
        compress: use zstd where it makes a section shorter.
    """
    flat = array.reshape(-1)
    if not flat.size:
        return encode_dense(name, dtype, array)
    entry = dense_entry(name, dtype, array.shape)
    positions = np.flatnonzero(flat & 0x7FFF if dtype == "bfloat16" else flat)
    rows = positions // entry.width
    coded = values.encode(flat[positions], dtype, rows, entry.rows, values.CHOICES[choice])
    entry = replace(entry, values=coded.code)
    scaled = values.has_scales(coded.code)
    scale_bytes = 4 if scaled else 0
    layout = encode_positions(entry, positions, coded.stored.itemsize, scale_bytes, compress)
    scales = coded.scales if layout.rows is None or not scaled else coded.scales[layout.rows]
    planes = values.split_planes(scales) if scaled else []
    for (selection, _), group in zip(layout.entry.groups(), layout.groups, strict=True):
        whole = len(group.members) == len(coded.stored)
        stored = coded.stored if whole else coded.stored[group.members]
        if selection.kept > len(stored):  # all entries are stored, zeros among them
            padded = np.zeros(selection.kept, stored.dtype)
            padded[group.indices] = stored
            stored = padded
        planes += values.split_planes(stored)
    return EncodedTensor(layout.entry, layout.sections, planes)


def decode(
    entry: Entry, sections: Sequence[bytes], planes: list[bytes], earlier: Sequence[Array]
) -> Array:
    """Return a tensor's bits in its shape.

    Args:
        entry: its line.
        sections: the plain sections that say where the values are.
        planes: the plain planes of scales and values.
        earlier: the tensors before it in the table.

    Raises:
        MalformedError: the sections are not what the line says.
    """
    if entry.copy_of is not None:
        original = earlier[entry.copy_of]
        same = original.dtype == np.dtype(DTYPES[entry.dtype]) and original.shape == entry.shape
        require(same, f"{entry.name!r:.80} is the same as a tensor of another kind")
        copy: Array = original.copy()
        return copy
    coded = _join_values(entry, planes)
    all_stored = all(selection.coding == "all" for selection, _ in entry.selections())
    if all_stored and entry.split is None and not values.has_scales(entry.values):
        decoded = values.decode(coded, entry.dtype, coded.scales)
        return _require_finite(entry, decoded).reshape(entry.shape)
    stored = decode_positions(entry, sections)
    # Only the kept values are checked: the memory of the zeros is not touched, and so not taken.
    kept = _require_finite(entry, values.decode(coded, entry.dtype, stored.rows))
    array = np.zeros(entry.count, DTYPES[entry.dtype])
    array[stored.positions] = kept
    return array.reshape(entry.shape)


def _require_finite(entry: Entry, numbers: Array) -> Array:
    finite = values.all_finite(numbers, entry.dtype)
    require(finite, f"values that are not finite in {entry.name!r:.80}")
    return numbers


def _join_values(entry: Entry, planes: list[bytes]) -> CodedValues:
    dtype = stored_type(entry.values, entry.dtype)
    scales = np.zeros(0, np.float32)
    if values.has_scales(entry.values):
        scales, planes = values.join_planes(planes[:4], np.dtype("<f4")), planes[4:]
    size = dtype.itemsize
    groups = [values.join_planes(planes[i : i + size], dtype) for i in range(0, len(planes), size)]
    stored = groups[0] if len(groups) == 1 else np.concatenate(groups)
    return CodedValues(entry.values, stored, scales)


@dataclass(frozen=True)
class _Side:
    """The rows, or the columns, that count as live.

    Attributes:
        selection: how it is written which ones these are.
        sections: its stored sections.
        live: their rising indices; None if all of them count as live.
    """

    selection: Selection
    sections: list[bytes]
    live: Array | None = None

    @property
    def cost(self) -> int:
        """Bytes in the file, about."""
        return sum(map(len, self.sections)) + (_SELECTION_COST if self.live is not None else 0)


@dataclass(frozen=True)
class _Group:
    """The kept weights in one group of live columns.

    Attributes:
        members: their indices among all kept weights of the tensor.
        indices: their indices in the matrix of live rows and of the group's columns.
    """

    members: Array
    indices: Array


@dataclass(frozen=True)
class _Layout:
    """One way to write where the kept weights of a tensor are.

    Attributes:
        entry: the tensor's line with the selections in it.
        sections: the stored sections of these selections.
        groups: the kept weights in each group of live columns.
        rows: indices of the live rows; None for all.
        cost: bytes in the file, about.
    """

    entry: Entry
    sections: list[bytes]
    groups: list[_Group]
    rows: Array | None
    cost: int


def encode_positions(
    entry: Entry, positions: Array, value_bytes: int, row_bytes: int, compress: bool
) -> _Layout:
    """Find the shortest way: with or without named live rows and columns, in one or two groups.

    Args:
        entry: line of the whole tensor, which is not empty.
        positions: (K,) rising indices of the kept weights.
        value_bytes: bytes of a stored value, which may be a zero.
        row_bytes: bytes that each stored row costs beside its values.
        compress: use zstd where it makes a section shorter.
    """
    rows, columns = np.divmod(positions, entry.width)
    layouts: list[_Layout] = []
    sides = (_sides(rows, entry.rows, compress), _sides(columns, entry.width, compress))
    for row_side, column_side in product(*sides):
        live_rows, live_columns = row_side.selection, column_side.selection
        live = replace(entry, live_rows=live_rows, live_columns=live_columns)
        sections = [*row_side.sections, *column_side.sections]
        cost = row_side.cost + column_side.cost + row_bytes * live_rows.kept
        start = _Layout(live, sections, [], row_side.live, cost)
        inside = _renumber(rows, row_side), _renumber(columns, column_side)
        layouts.append(_add_groups(start, inside, None, value_bytes, compress))
        dense = dense_columns(inside[1], live_rows.kept, live_columns.kept)
        if dense is not None:
            layouts.append(_add_groups(start, inside, dense, value_bytes, compress))
    return min(layouts, key=lambda layout: layout.cost)


def _sides(indices: Array, count: int, compress: bool) -> list[_Side]:
    """Return the ways to count one side: all of it, and only the live ones if some are dead."""
    everything = _Side(Selection("all", count), [])
    live = np.flatnonzero(np.bincount(indices, minlength=count))
    if len(live) == count:
        return [everything]
    return [everything, _Side(*encode_selection(live, count, None, compress), live)]


def _renumber(indices: Array, side: _Side) -> Array:
    """Number rows or columns among the live ones."""
    if side.live is None:
        return indices
    numbers = np.empty(int(side.live[-1]) + 1 if len(side.live) else 0, np.int64)
    numbers[side.live] = np.arange(len(side.live))
    renumbered: Array = numbers[indices]
    return renumbered


def _add_groups(
    start: _Layout,
    inside: tuple[Array, Array],
    dense: Array | None,
    value_bytes: int,
    compress: bool,
) -> _Layout:
    """Add to a layout where the kept weights are, in one or two groups of columns.

    Args:
        start: the live rows and columns, and what they cost.
        inside: (K,) rows and (K,) columns of the kept weights among the live ones.
        dense: rising indices of the columns in the first group; None for a single group.
        value_bytes: bytes of a stored value.
        compress: use zstd where it makes a section shorter.
    """
    entry, sections, cost = start.entry, list(start.sections), start.cost
    in_second = np.zeros(entry.live_columns.kept, np.bool_)
    if dense is not None:
        split, stored = encode_selection(dense, entry.live_columns.kept, None, compress)
        entry, cost = replace(entry, split=split), cost + SPLIT_COST + sum(map(len, stored))
        sections += stored
        in_second[:] = True
        in_second[dense] = False
    rows, columns = inside
    groups, selections = [], []
    for excluded in [in_second] if dense is None else [in_second, ~in_second]:
        width = int((~excluded).sum())
        numbers = np.cumsum(~excluded) - 1
        members = np.flatnonzero(~excluded[columns])
        indices = rows[members] * width + numbers[columns[members]]
        count = entry.live_rows.kept * width
        selection, stored = encode_selection(indices, count, value_bytes, compress)
        cost += sum(map(len, stored)) + value_bytes * (selection.kept - len(members))
        sections += stored
        groups.append(_Group(members, indices))
        selections.append(selection)
    rest = None if dense is None else selections[1]
    entry = replace(entry, positions=selections[0], rest=rest)
    return _Layout(entry, sections, groups, start.rows, cost)


def dense_columns(columns: Array, rows: int, count: int) -> Array | None:
    """Find the columns that should be a group of their own, if that is likely to pay.

    The threshold on a column's kept weights is the one at which two masks of constant density, and
    the mask that tells the groups apart, have the least entropy together.

    Args:
        columns: (K,) column of each kept weight, in [0, count).
        rows: number of rows.
        count: number of columns.

    Returns:
        The rising indices of the columns with more kept weights; None if one group is as good.
    """
    if rows < 2 or count < 2:
        return None
    kept = np.bincount(columns, minlength=count)
    order = np.argsort(-kept, kind="stable")
    first = np.cumsum(kept[order])[:-1]  # kept weights of the 1, 2, … densest columns
    sizes = np.arange(1, count)
    total = len(columns)
    bits = (
        _entropy(first, sizes * rows)
        + _entropy(total - first, (count - sizes) * rows)
        + _entropy(sizes, np.full(count - 1, count))
    )
    best = int(bits.argmin())
    one_group = float(_entropy(np.array([total]), np.array([count * rows]))[0])
    return np.sort(order[: best + 1]) if one_group - bits[best] > 8 * SPLIT_COST else None


def _entropy(kept: Array, count: Array) -> Array:
    """Return elementwise the bits that say which ``kept`` of ``count`` > 0: count·H(density)."""
    density = kept / count
    bits: Array = -count * (_p_log_p(density) + _p_log_p(1 - density))
    return bits


def _p_log_p(p: Array) -> Array:
    result: Array = p * np.log2(np.where(p > 0, p, 1))
    return result


@dataclass(frozen=True)
class StoredPositions:
    """Where the stored values of a tensor are.

    Attributes:
        positions: (K,) indices in row-major order.
        rows: (K,) index of each one's row among the live rows.
    """

    positions: Array
    rows: Array


def decode_positions(entry: Entry, sections: Sequence[bytes]) -> StoredPositions:
    """Return where the stored values are; the inverse of :func:`encode_positions`.

    Args:
        entry: the tensor's line.
        sections: the plain sections of its selections.

    Raises:
        MalformedError: the sections are not what the line says.
    """
    selected, start = [], 0
    for selection, count in entry.selections():
        end = start + len(selection.lengths(count))
        is_all = selection.coding == "all"
        selected.append(None if is_all else decode_selection(selection, sections[start:end], count))
        start = end
    groups = entry.groups()
    live_rows, live_columns, *split = selected[: -len(groups)]
    group_columns = [live_columns]
    if split:
        (first,) = split
        assert first is not None  # neither the writer nor a line puts all columns in a group
        live = np.arange(entry.width) if live_columns is None else live_columns
        group_columns = [live[first], np.delete(live, first)]
    stored = [
        _group_positions(
            entry,
            np.arange(selection.kept) if indices is None else indices,
            live_rows,
            columns,
            width,
        )
        for (selection, width), indices, columns in zip(
            groups, selected[-len(groups) :], group_columns, strict=True
        )
    ]
    if len(stored) == 1:
        return stored[0]
    return StoredPositions(
        np.concatenate([group.positions for group in stored]),
        np.concatenate([group.rows for group in stored]),
    )


def _group_positions(
    entry: Entry, indices: Array, live_rows: Array | None, columns: Array | None, width: int
) -> StoredPositions:
    """Return where the stored values of one group of columns are.

    Args:
        entry: the tensor's line.
        indices: indices in the matrix of the live rows and the group's columns.
        live_rows: rows of the tensor that are live; None for all.
        columns: columns of the tensor that are in the group; None for all.
        width: number of these columns.
    """
    rows = indices // max(1, width)
    if live_rows is None and columns is None:
        return StoredPositions(indices, rows)
    inside = indices - rows * width
    tensor_columns = inside if columns is None else columns[inside]
    tensor_rows = rows if live_rows is None else live_rows[rows]
    return StoredPositions(tensor_rows * entry.width + tensor_columns, rows)
