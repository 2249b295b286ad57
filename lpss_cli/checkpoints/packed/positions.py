"""Which of N things are kept: the weights of a tensor, its rows or its columns.

The same few codings serve all of them, and the one that is shortest in the file is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpss_cli.checkpoints.packed import coding as bits
from lpss_cli.checkpoints.packed.coding import Array, need, size_of, store_section

#: Coding -> the numbers that its line has, in this order.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "all": ("kept",),
    "mask": ("kept",),
    "gaps": ("kept", "rice", "length"),
    "bytes": ("kept", "length"),
}
_LARGEST_RICE = 31


@dataclass(frozen=True)
class Places:
    """How the kept ones are written.

    Attributes:
        coding: ``all``, ``mask``, ``gaps`` (Rice's code) or ``bytes`` (gaps as bytes).
        kept: how many are kept.
        rice: parameter of ``gaps``.
        length: bits of the unary stream of ``gaps``, or the bytes of ``bytes``.
    """

    coding: str
    kept: int
    rice: int = 0
    length: int = 0

    def lengths(self, count: int) -> list[int]:
        """Return the plain length of each section, for ``count`` things to choose from."""
        return {
            "all": [],
            "mask": [size_of(count)],
            "gaps": [size_of(self.length), size_of(self.kept * self.rice)],
            "bytes": [self.length],
        }[self.coding]

    def to_list(self) -> list[Any]:
        """Return what the header has of it."""
        return [self.coding, *(getattr(self, name) for name in _NUMBERS[self.coding])]


def shortest(
    positions: Array, count: int, filler: int | None, compress: bool
) -> tuple[Places, list[bytes]]:
    """Choose a coding by its exact length in the file.

    Args:
        positions: (K,) strictly rising indices below ``count``.
        count: how many there are to choose from.
        filler: bytes that each one not kept costs elsewhere if all are said to be kept; None says
            that this must not be.
        compress: use zstd where it helps.

    Returns:
        The coding and its stored sections.
    """
    kept = len(positions)
    if kept == count:
        return Places("all", count), []
    k = bits.rice_parameter(bits.gaps_of(positions))
    unary, length, low = bits.encode_gaps(positions, k)
    small = bits.encode_bytes(positions)
    found = {
        Places("mask", kept): [bits.encode_mask(positions, count)],
        Places("gaps", kept, k, length): [unary, low],
        Places("bytes", kept, 0, len(small)): [small],
    }
    stored = {
        way: [store_section(part, compress) for part in parts] for way, parts in found.items()
    }
    best = min(stored, key=lambda way: sum(map(len, stored[way])))
    if filler is not None and (count - kept) * filler <= sum(map(len, stored[best])):
        return Places("all", count), []
    return best, stored[best]


def decode(places: Places, parts: Sequence[bytes], count: int) -> Array:
    """Read the indices of the kept ones; the inverse of ``shortest``, from plain sections.

    Raises:
        MalformedError: the sections are not what ``places`` says.
    """
    if places.coding == "gaps":
        return bits.decode_gaps(parts[0], places.length, parts[1], places.rice, places.kept, count)
    if places.coding == "bytes":
        return bits.decode_bytes(parts[0], places.kept, count)
    if places.coding == "mask":
        return bits.decode_mask(parts[0], places.kept, count)
    return np.arange(count)


def parse(line: Any, count: int) -> Places:
    """Check what the header says of ``count`` things, so that no section is longer than it may be.

    A 0 of the unary stream stands for 2^rice things, and the best parameter is 0 or has
    kept · 2^rice < 2 count; a byte 255 stands for 255 things.

    Raises:
        MalformedError: a type or number that cannot be.
    """
    right = isinstance(line, list) and len(line) > 0 and isinstance(line[0], str)
    need(right and line[0] in _NUMBERS and line[0] != "all", f"an unknown coding {line!r:.40}")
    coding, *numbers = line
    whole = all(type(number) is int and number >= 0 for number in numbers)
    need(whole and len(numbers) == len(_NUMBERS[coding]), "a number out of range in a coding")
    places = Places(coding, **dict(zip(_NUMBERS[coding], numbers, strict=True)))
    need(places.kept <= count, f"{places.kept} kept ones of {count}: a number out of range")
    k = places.rice
    fits = k == 0 or (k <= _LARGEST_RICE and places.kept << k < 2 * count)
    need(fits, "a parameter that is too large for its tensor")
    longest = places.kept + (count // 255 if coding == "bytes" else count >> k)
    need(places.length <= longest, "a length out of range in a coding")
    return places
