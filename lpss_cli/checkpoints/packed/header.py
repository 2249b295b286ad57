"""One tensor's line in the header: what it is, what is kept of it, how long its sections are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from lpss_cli.checkpoints.packed.coding import require
from lpss_cli.checkpoints.packed.positions import Selection, parse_selection
from lpss_cli.checkpoints.packed.values import DTYPES, FLOATS, STORED, has_scales, stored_type

#: Weights of one tensor at most; indices and their sums then fit 64 bits.
MAX_WEIGHTS = 2**31 - 1
#: What planes of different tensors must have in common to be joined: code, dtype (of raw values
#: only), whether all entries are stored, ``scale`` or ``value``, and the number of the byte.
PlaneKind = tuple[str, str, bool, str, int]
_MAX_DIMENSIONS = 64
_KEYS_OF_COPY = {"name", "dtype", "shape", "as"}
_REQUIRED_KEYS = {"name", "dtype", "shape", "values", "sections"}
_SELECTION_KEYS = {"rows", "columns", "places", "split", "rest"}


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it: a matrix of its first dimension by all others.

    Attributes:
        name: name in the state_dict.
        dtype: a key of ``values.DTYPES``.
        shape: shape of the tensor.
        live_rows: the rows that are stored; the others are zero.
        live_columns: the columns that are stored.
        positions: the entries that are stored, out of those in the live rows and columns. After a
            split, only of those in the first group of columns.
        values: the code of the values.
        sections: stored lengths in bytes of the sections that belong to this tensor alone.
        copy_of: index in the table of the tensor that this one equals; None if it is not a copy.
        split: the live columns in the first group; None if there is only one group.
        rest: the entries that are stored, out of those in the second group of columns.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    live_rows: Selection
    live_columns: Selection
    positions: Selection
    values: str = "raw"
    sections: tuple[int, ...] = field(default=())
    copy_of: int | None = None
    split: Selection | None = None
    rest: Selection | None = None

    @property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Size of the first dimension, 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.count // max(1, self.rows)

    @property
    def kept(self) -> int:
        """Number of stored values; 0 for a copy."""
        return 0 if self.copy_of is not None else sum(stored.kept for stored, _ in self.groups())

    def groups(self) -> list[tuple[Selection, int]]:
        """Return, for each group of live columns, the stored entries and the number of columns."""
        columns = self.live_columns.kept
        if self.split is None or self.rest is None:
            return [(self.positions, columns)]
        return [(self.positions, self.split.kept), (self.rest, columns - self.split.kept)]

    def selections(self) -> list[tuple[Selection, int]]:
        """Return all selections in the order of their sections, each with what it selects from."""
        sides = [(self.live_rows, self.rows), (self.live_columns, self.width)]
        split = [(self.split, self.live_columns.kept)] if self.split is not None else []
        rows = self.live_rows.kept
        return [*sides, *split, *((stored, rows * columns) for stored, columns in self.groups())]

    def planes(self) -> list[tuple[PlaneKind, int]]:
        """Return kind and plain length of each plane: first of the scales, then of the values."""
        if self.copy_of is not None:
            return []
        itemsize = stored_type(self.values, self.dtype).itemsize
        of_type = self.dtype if self.values == "raw" else ""
        planes: list[tuple[PlaneKind, int]] = []
        if has_scales(self.values):
            is_dense = self.positions.coding == "all"
            kind = (self.values, of_type, is_dense, "scale")
            planes = [((*kind, byte), self.live_rows.kept) for byte in range(4)]
        for stored, _ in self.groups():
            kind = (self.values, of_type, stored.coding == "all", "value")
            planes += [((*kind, byte), stored.kept) for byte in range(itemsize)]
        return planes

    @property
    def position_sections(self) -> int:
        """Number of sections that say where the values are."""
        return sum(len(selection.lengths(count)) for selection, count in self.selections())

    def section_lengths(self, short: int) -> list[int]:
        """Return the plain lengths of the sections that belong to this tensor alone.

        Args:
            short: planes of fewer bytes are joined with those of other tensors.
        """
        lengths = [n for selection, count in self.selections() for n in selection.lengths(count)]
        return lengths + [length for _, length in self.planes() if length >= short]

    def to_dict(self) -> dict[str, Any]:
        """Return the header's line."""
        line: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.copy_of is not None:
            return line | {"as": self.copy_of}
        selections = {
            "rows": self.live_rows,
            "columns": self.live_columns,
            "places": self.positions,
        }
        if self.split is not None and self.rest is not None:
            selections |= {"split": self.split, "rest": self.rest}
        line |= {key: s.to_list() for key, s in selections.items() if s.coding != "all"}
        return line | {"values": self.values, "sections": list(self.sections)}


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor as it goes into the file.

    Attributes:
        entry: its line; the lengths of the sections are still missing.
        positions: the stored sections that say where the values are.
        planes: the plain planes of scales and values.
    """

    entry: Entry
    positions: list[bytes]
    planes: list[bytes]


def dense_entry(name: str, dtype: str, shape: tuple[int, ...], copy_of: int | None = None) -> Entry:
    """Return the entry of a tensor that is stored whole, or of a copy."""
    count, rows = math.prod(shape), shape[0] if shape else 1
    all_rows, all_columns = Selection("all", rows), Selection("all", count // max(1, rows))
    all_entries = Selection("all", count)
    return Entry(name, dtype, shape, all_rows, all_columns, all_entries, copy_of=copy_of)


def parse(line: Any, index: int, short: int) -> Entry:
    """Check a header's line as far as that is possible without the sections.

    Args:
        line: parsed JSON.
        index: index of the line in the table.
        short: planes of fewer bytes are joined with those of other tensors.

    Raises:
        MalformedError: a key, type or number is impossible.
    """
    require(isinstance(line, dict), "a tensor that is not described")
    name, shape, keys = line.get("name"), line.get("shape"), set(line)
    require(isinstance(name, str), "a tensor without a name")
    is_full = _REQUIRED_KEYS <= keys <= _REQUIRED_KEYS | _SELECTION_KEYS
    require(keys == _KEYS_OF_COPY or is_full, "unexpected keys")
    require(isinstance(line["dtype"], str) and line["dtype"] in DTYPES, "an unknown type")
    require(isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS, "an impossible shape")
    sizes = tuple(_number(line, size, MAX_WEIGHTS) for size in shape)
    # NumPy refuses even an empty array if the product of its other sizes overflows.
    require(math.prod(filter(None, sizes)) <= MAX_WEIGHTS, "a tensor that is too large")
    if keys == _KEYS_OF_COPY:
        return dense_entry(name, line["dtype"], sizes, _number(line, line["as"], index - 1))
    entry = _with_selections(line, dense_entry(name, line["dtype"], sizes))
    fits = len(entry.sections) == len(entry.section_lengths(short))
    require(fits, "another number of sections")
    return entry


def _with_selections(line: dict[str, Any], entry: Entry) -> Entry:
    """Add code, selections and sections to the entry of a whole tensor."""
    values, sections = line["values"], line["sections"]
    is_known = isinstance(values, str) and (values == "raw" or values in STORED)
    is_allowed = is_known and (values == "raw" or entry.dtype in FLOATS)
    require(is_allowed, "an unknown code of values")
    # The sizes of an empty tensor may be huge, so nothing may be declared for each row.
    is_plain = values == "raw" and not _SELECTION_KEYS & set(line)
    require(is_plain or entry.count > 0, "a selection or a scale in an empty tensor")
    require(isinstance(sections, list), "sections that are not a list")
    rows, columns = entry.live_rows, entry.live_columns
    if "rows" in line:
        rows = parse_selection(line["rows"], entry.rows)
    if "columns" in line:
        columns = parse_selection(line["columns"], entry.width)
    entry = replace(entry, live_rows=rows, live_columns=columns, values=values)
    entry = _with_groups(line, entry)
    return replace(entry, sections=tuple(_number(line, size, 2**62) for size in sections))


def _with_groups(line: dict[str, Any], entry: Entry) -> Entry:
    """Add the stored entries of one or two groups of live columns."""
    require("split" in line or "rest" not in line, "the rest of a tensor that is not split")
    columns = entry.live_columns.kept
    split = parse_selection(line["split"], columns) if "split" in line else None
    first = columns if split is None else split.kept
    selections = {}
    for key, width in (("places", first), ("rest", columns - first)):
        count = entry.live_rows.kept * width
        everything = Selection("all", count)
        selections[key] = parse_selection(line[key], count) if key in line else everything
    rest = None if split is None else selections["rest"]
    return replace(entry, positions=selections["places"], split=split, rest=rest)


def _number(line: dict[str, Any], value: Any, highest: int) -> int:
    fits = type(value) is int and 0 <= value <= highest
    require(fits, f"a number out of range in {line['name']!r:.80}")
    return int(value)
