"""One tensor's line in the header: what it is and how long each of its sections is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bits import need, size_of
from .values import DTYPES, FLOATS, STORED, has_scales, stored_type

#: Weights of one tensor at most; indices and their sums then fit 64 bits.
LARGEST = 2**31 - 1
# Keys that lines of each kind have beside name, dtype and shape.
_KEYS: dict[str, tuple[str, ...]] = {
    "gaps": ("kept", "rice", "unary", "values", "sections"),
    "mask": ("kept", "values", "sections"),
    "dense": ("values", "sections"),
    "same": ("as",),
}


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it.

    Attributes:
        name: in the state_dict.
        dtype: a name of ``values.DTYPES``.
        shape: of the tensor.
        index: ``gaps``, ``mask``, ``dense`` (every value is stored) or ``same`` (as another one).
        kept: number of stored values; all for ``dense``.
        rice: parameter of the gaps' code.
        unary: bits of the gaps' unary stream.
        values: the code of the values.
        sections: stored length of each section in bytes.
        same: place in the table of the tensor that this one equals.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    index: str
    kept: int = 0
    rice: int = 0
    unary: int = 0
    values: str = "raw"
    sections: tuple[int, ...] = ()
    same: int = 0

    @property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Entries of the first dimension, 1 for a scalar: those that share a scale."""
        return self.shape[0] if self.shape else 1

    def lengths(self) -> list[int]:
        """Return the plain length of each section: index, planes of the scales and the values."""
        if self.index == "same":
            return []
        index = {
            "gaps": [size_of(self.unary), size_of(self.kept * self.rice)],
            "mask": [size_of(self.count)],
            "dense": [],
        }[self.index]
        scales = [self.rows] * 4 if has_scales(self.values) else []
        return index + scales + [self.kept] * stored_type(self.values, self.dtype).itemsize

    def to_dict(self) -> dict[str, Any]:
        """Return the header's line."""
        line: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        line["index"] = self.index
        found = {**vars(self), "as": self.same, "sections": list(self.sections)}
        return line | {key: found[key] for key in _KEYS[self.index]}


def parse(line: Any, place: int) -> Entry:
    """Check a header's line as far as it goes without the sections.

    Args:
        line: parsed JSON.
        place: its place in the table.

    Raises:
        MalformedError: a key, type or number that cannot be.
    """
    need(isinstance(line, dict), "a tensor that is not described")
    name, index, shape = line.get("name"), line.get("index"), line.get("shape")
    need(isinstance(name, str), "a tensor without a name")
    need(isinstance(index, str) and index in _KEYS, f"an unknown index {index!r:.40}")
    need(set(line) == {"name", "dtype", "shape", "index", *_KEYS[index]}, "unexpected keys")
    need(isinstance(line["dtype"], str) and line["dtype"] in DTYPES, "an unknown type")
    need(isinstance(shape, list) and len(shape) <= 64, "a shape that is none")
    count = math.prod(_number(line, size, LARGEST) for size in shape)
    need(count <= LARGEST, "a tensor that is too large")
    if index == "same":
        other = _number(line, line["as"], place - 1)
        return Entry(name, line["dtype"], tuple(shape), index, same=other)
    values, sections = line["values"], line["sections"]
    known = isinstance(values, str) and (values == "raw" or values in STORED)
    need(known and (values == "raw" or line["dtype"] in FLOATS), "an unknown code of values")
    need(isinstance(sections, list), "sections that are none")
    kept = _number(line, line.get("kept", count), count)
    rice, unary = _gaps(line, kept, count) if index == "gaps" else (0, 0)
    entry = Entry(name, line["dtype"], tuple(shape), index, kept, rice, unary, values,
                  tuple(_number(line, size, 2**62) for size in sections))  # fmt: skip
    need(len(entry.sections) == len(entry.lengths()), "another number of sections")
    return entry


def _gaps(line: Mapping[str, Any], kept: int, count: int) -> tuple[int, int]:
    """Check what bounds both streams: a 0 of the unary one stands for 2^rice weights, and the best
    parameter is 0 or has kept · 2^rice < 2 count.
    """
    rice = _number(line, line["rice"], 31)
    need(rice == 0 or kept << rice < 2 * count, "a parameter that is too large for its tensor")
    unary = _number(line, line["unary"], kept + (count >> rice))
    return rice, unary


def _number(line: Mapping[str, Any], value: Any, highest: int) -> int:
    fits = type(value) is int and 0 <= value <= highest
    need(fits, f"a number out of range in {line['name']!r:.80}")
    return int(value)
