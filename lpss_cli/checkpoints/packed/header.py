"""One tensor's line in the header: what it is, what is kept of it, how long its sections are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from lpss_cli.checkpoints.packed import positions
from lpss_cli.checkpoints.packed.coding import need
from lpss_cli.checkpoints.packed.positions import Places
from lpss_cli.checkpoints.packed.values import DTYPES, FLOATS, STORED, has_scales, stored_type

#: Weights of one tensor at most; indices and their sums then fit 64 bits.
LARGEST = 2**31 - 1
_COPY = {"name", "dtype", "shape", "as"}
_NEEDED = {"name", "dtype", "shape", "values", "sections"}
_CHOICES = {"rows", "columns", "places", "split", "rest"}
#: What planes of different tensors must have in common to be joined.
Kind = tuple[str, str, bool, str, int]


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it: a matrix of its first dimension by all others.

    Attributes:
        name: in the state_dict.
        dtype: a name of ``values.DTYPES``.
        shape: of the tensor.
        live_rows: the rows that are stored; the others are zero.
        live_columns: the columns that are stored.
        places: the entries that are stored, of the matrix of live rows and columns.
        split: the live columns that are a matrix of their own, the first one, where there are two.
        rest: the entries that are stored of the second one.
        values: the code of the values.
        sections: stored lengths in bytes of the sections that are this tensor's own.
        same: place in the table of the tensor that this one equals, if there is one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    live_rows: Places
    live_columns: Places
    places: Places
    values: str = "raw"
    sections: tuple[int, ...] = field(default=())
    same: int | None = None
    split: Places | None = None
    rest: Places | None = None

    @property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Entries of the first dimension, 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.count // max(1, self.rows)

    @property
    def kept(self) -> int:
        """Stored values; none for a copy."""
        return 0 if self.same is not None else sum(places.kept for places, _ in self.blocks())

    def blocks(self) -> list[tuple[Places, int]]:
        """Return the matrices of live rows and columns: the stored entries, and the columns."""
        columns = self.live_columns.kept
        if self.split is None or self.rest is None:
            return [(self.places, columns)]
        return [(self.places, self.split.kept), (self.rest, columns - self.split.kept)]

    def choices(self) -> list[tuple[Places, int]]:
        """Return what is chosen, and from how many: rows, columns, of these, entries."""
        sides = [(self.live_rows, self.rows), (self.live_columns, self.width)]
        split = [(self.split, self.live_columns.kept)] if self.split is not None else []
        rows = self.live_rows.kept
        return [*sides, *split, *((places, rows * columns) for places, columns in self.blocks())]

    def planes(self) -> list[tuple[Kind, int]]:
        """Return kind and plain length of each plane: of the scales, then of the values."""
        if self.same is not None:
            return []
        size = stored_type(self.values, self.dtype).itemsize
        of_type = self.dtype if self.values == "raw" else ""
        found: list[tuple[Kind, int]] = []
        if has_scales(self.values):
            dense = self.places.coding == "all"
            scale = (self.values, of_type, dense, "scale")
            found = [((*scale, i), self.live_rows.kept) for i in range(4)]
        for stored, _ in self.blocks():
            value = (self.values, of_type, stored.coding == "all", "value")
            found += [((*value, i), stored.kept) for i in range(size)]
        return found

    @property
    def parts(self) -> int:
        """Sections that say where the values are."""
        return sum(len(way.lengths(count)) for way, count in self.choices())

    def own(self, short: int) -> list[int]:
        """Return the plain lengths of the sections of this tensor alone.

        Args:
            short: planes of fewer bytes are joined with those of other tensors.
        """
        found = [size for way, count in self.choices() for size in way.lengths(count)]
        return found + [size for _, size in self.planes() if size >= short]

    def to_dict(self) -> dict[str, Any]:
        """Return the header's line."""
        line: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.same is not None:
            return line | {"as": self.same}
        ways = {"rows": self.live_rows, "columns": self.live_columns, "places": self.places}
        if self.split is not None and self.rest is not None:
            ways |= {"split": self.split, "rest": self.rest}
        line |= {key: way.to_list() for key, way in ways.items() if way.coding != "all"}
        return line | {"values": self.values, "sections": list(self.sections)}


def whole(name: str, dtype: str, shape: tuple[int, ...], same: int | None = None) -> Entry:
    """Return the entry of a tensor of which everything is stored, or of a copy."""
    count, rows = math.prod(shape), shape[0] if shape else 1
    all_rows, all_columns = Places("all", rows), Places("all", count // max(1, rows))
    return Entry(name, dtype, shape, all_rows, all_columns, Places("all", count), same=same)


def parse(line: Any, place: int, short: int) -> Entry:
    """Check a header's line as far as it goes without the sections.

    Args:
        line: parsed JSON.
        place: its place in the table.
        short: planes of fewer bytes are joined.

    Raises:
        MalformedError: a key, type or number that cannot be.
    """
    need(isinstance(line, dict), "a tensor that is not described")
    name, shape, keys = line.get("name"), line.get("shape"), set(line)
    need(isinstance(name, str), "a tensor without a name")
    need(keys == _COPY or _NEEDED <= keys <= _NEEDED | _CHOICES, "unexpected keys")
    need(isinstance(line["dtype"], str) and line["dtype"] in DTYPES, "an unknown type")
    need(isinstance(shape, list) and len(shape) <= 64, "a shape that is none")
    sizes = tuple(_number(line, size, LARGEST) for size in shape)
    # An empty tensor too: no array has sides that together cannot be numbered.
    need(math.prod(filter(None, sizes)) <= LARGEST, "a tensor that is too large")
    if keys == _COPY:
        return whole(name, line["dtype"], sizes, _number(line, line["as"], place - 1))
    entry = _chosen(line, whole(name, line["dtype"], sizes))
    need(len(entry.sections) == len(entry.own(short)), "another number of sections")
    return entry


def _chosen(line: dict[str, Any], entry: Entry) -> Entry:
    """Add codes, choices and sections to the entry of a whole tensor."""
    values, sections = line["values"], line["sections"]
    known = isinstance(values, str) and (values == "raw" or values in STORED)
    need(known and (values == "raw" or entry.dtype in FLOATS), "an unknown code of values")
    # The sizes of an empty tensor may be huge: nothing may be declared by row.
    plain = values == "raw" and not _CHOICES & set(line)
    need(plain or entry.count > 0, "a choice or a scale in an empty tensor")
    need(isinstance(sections, list), "sections that are none")
    rows, columns = entry.live_rows, entry.live_columns
    if "rows" in line:
        rows = positions.parse(line["rows"], entry.rows)
    if "columns" in line:
        columns = positions.parse(line["columns"], entry.width)
    entry = replace(entry, live_rows=rows, live_columns=columns, values=values)
    entry = _blocks(line, entry)
    return replace(entry, sections=tuple(_number(line, size, 2**62) for size in sections))


def _blocks(line: dict[str, Any], entry: Entry) -> Entry:
    """Add the stored entries of the one or the two matrices of live rows and columns."""
    need("split" in line or "rest" not in line, "the rest of a tensor that is not split")
    split = positions.parse(line["split"], entry.live_columns.kept) if "split" in line else None
    first = entry.live_columns.kept if split is None else split.kept
    sizes = {"places": first, "rest": entry.live_columns.kept - first}
    found = {
        key: positions.parse(line[key], entry.live_rows.kept * columns)
        if key in line
        else Places("all", entry.live_rows.kept * columns)
        for key, columns in sizes.items()
    }
    rest = None if split is None else found["rest"]
    return replace(entry, places=found["places"], split=split, rest=rest)


def _number(line: dict[str, Any], value: Any, highest: int) -> int:
    fits = type(value) is int and 0 <= value <= highest
    need(fits, f"a number out of range in {line['name']!r:.80}")
    return int(value)
