"""Which of N things are kept: the weights of a tensor, its rows or its columns.

Each of three codings serves all of these, and the one that is shortest in the file is taken:

- ``mask``: one bit for each of the N things, 1 for the kept ones.
- ``gaps``: Rice's code of the gaps. A gap is the number of things in front of a kept one that are
  not kept. Rice's code with parameter k (Rice & Plaunt, IEEE Trans. Commun. 19, 1971; Golomb's code
  for divisors 2^k) writes ``gap >> k`` in unary, as that many 0 bits and a 1, and the k low bits as
  they are. The two halves are streams of their own, so that both are read without a loop over the
  weights. All bits fill bytes from the least significant one.
- ``bytes``: the gaps as bytes, for zstd to shorten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpss_cli.checkpoints.packed.coding import Array, require, store_section

# Coding → the numbers in its line of the header, in this order.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "all": ("kept",),
    "mask": ("kept",),
    "gaps": ("kept", "rice", "length"),
    "bytes": ("kept", "length"),
}
_MAX_RICE = 31


@dataclass(frozen=True)
class Selection:
    """How it is written which things are kept.

    Attributes:
        coding: ``all``, ``mask``, ``gaps`` (Rice's code) or ``bytes`` (gaps as bytes).
        kept: how many things are kept.
        rice: the parameter k of ``gaps``.
        length: bits in the unary stream of ``gaps``, or bytes of ``bytes``.
    """

    coding: str
    kept: int
    rice: int = 0
    length: int = 0

    def lengths(self, count: int) -> list[int]:
        """Return the plain length of each section in bytes, for ``count`` things to choose from."""
        return {
            "all": [],
            "mask": [_bytes_for(count)],
            "gaps": [_bytes_for(self.length), _bytes_for(self.kept * self.rice)],
            "bytes": [self.length],
        }[self.coding]

    def to_list(self) -> list[Any]:
        """Return what the header says about it."""
        return [self.coding, *(getattr(self, name) for name in _NUMBERS[self.coding])]


def encode_selection(
    positions: Array, count: int, filler: int | None, compress: bool
) -> tuple[Selection, list[bytes]]:
    """Choose the coding that is shortest in the file.

    Args:
        positions: (K,) strictly rising indices below ``count``.
        count: how many things there are to choose from.
        filler: if the file says that all things are kept, each one that is not costs this many
            bytes elsewhere; None means that the file must not say so.
        compress: use zstd where it makes a section shorter.

    Returns:
        The selection and its stored sections.
    """
    kept = len(positions)
    if kept == count:
        return Selection("all", count), []
    k = rice_parameter(gaps_of(positions))
    unary, length, remainders = encode_gaps(positions, k)
    gap_bytes = encode_bytes(positions)
    candidates = {
        Selection("mask", kept): [encode_mask(positions, count)],
        Selection("gaps", kept, k, length): [unary, remainders],
        Selection("bytes", kept, 0, len(gap_bytes)): [gap_bytes],
    }
    stored = {
        selection: [store_section(section, compress) for section in sections]
        for selection, sections in candidates.items()
    }
    best = min(stored, key=lambda selection: sum(map(len, stored[selection])))
    if filler is not None and (count - kept) * filler <= sum(map(len, stored[best])):
        return Selection("all", count), []
    return best, stored[best]


def decode_selection(selection: Selection, sections: Sequence[bytes], count: int) -> Array:
    """Return the indices of the kept things; the inverse of :func:`encode_selection`.

    Args:
        selection: how they are written.
        sections: the plain sections.
        count: how many things there are to choose from.

    Raises:
        MalformedError: the sections are not what the selection says.
    """
    kept = selection.kept
    if selection.coding == "gaps":
        unary, remainders = sections
        return decode_gaps(unary, selection.length, remainders, selection.rice, kept, count)
    if selection.coding == "bytes":
        return decode_bytes(sections[0], kept, count)
    if selection.coding == "mask":
        return decode_mask(sections[0], kept, count)
    return np.arange(count)


def parse_selection(line: Any, count: int) -> Selection:
    """Check what the header says about ``count`` things, so that no section is too long.

    A 0 of the unary stream stands for 2^rice things, and the best parameter is 0 or satisfies
    kept · 2^rice < 2 count; a byte of 255 stands for 255 things.

    Raises:
        MalformedError: a type or number is impossible.
    """
    is_line = isinstance(line, list) and len(line) > 0 and isinstance(line[0], str)
    require(is_line and line[0] in _NUMBERS and line[0] != "all", f"an unknown coding {line!r:.40}")
    coding, *numbers = line
    are_counts = all(type(number) is int and number >= 0 for number in numbers)
    fits = are_counts and len(numbers) == len(_NUMBERS[coding])
    require(fits, "a number out of range in a coding")
    selection = Selection(coding, **dict(zip(_NUMBERS[coding], numbers, strict=True)))
    kept, k = selection.kept, selection.rice
    require(kept <= count, f"{kept} kept out of {count}: a number out of range")
    fits = k == 0 or (k <= _MAX_RICE and kept << k < 2 * count)
    require(fits, "a parameter that is too large for its tensor")
    longest = kept + (count // 255 if coding == "bytes" else count >> k)
    require(selection.length <= longest, "a length out of range in a coding")
    return selection


def gaps_of(positions: Array) -> Array:
    """Return the gap in front of each kept thing: (K,) rising indices -> (K,) gaps ≥ 0."""
    return np.diff(positions, prepend=-1) - 1


def rice_parameter(gaps: Array) -> int:
    """Return the k that makes Rice's code shortest.

    With q = gap >> k the length is K·(k + 1) + Σq. From k to k + 1 it changes by K - Σ⌈q/2⌉, which
    only grows with k, so the first k at which it is not negative is the best one. Then k = 0 or
    K·2^k < 2n for n weights: a step from k - 1 to k is taken only while K < Σq ≤ n / 2^(k - 1).
    """
    k, quotients = 0, gaps.copy()
    while int(((quotients + 1) >> 1).sum()) > len(gaps):
        quotients >>= 1
        k += 1
    return k


def encode_gaps(positions: Array, k: int) -> tuple[bytes, int, bytes]:
    """Write the gaps in Rice's code.

    Args:
        positions: (K,) strictly rising indices ≥ 0.
        k: Rice's parameter, 0 to 31.

    Returns:
        The unary stream, its length in bits, and the stream of k-bit remainders.
    """
    gaps = gaps_of(positions)
    ends = np.cumsum((gaps >> k) + 1) - 1
    length = int(ends[-1]) + 1 if len(ends) else 0
    unary = np.zeros(length, np.uint8)
    unary[ends] = 1
    # (K, k) bits of the remainders, the lowest first.
    remainders = np.empty((len(gaps), k), np.uint8)
    for bit in range(k):
        remainders[:, bit] = (gaps >> bit) & 1
    return _pack_bits(unary), length, _pack_bits(remainders.reshape(-1))


def decode_gaps(
    unary: bytes, length: int, remainders: bytes, k: int, kept: int, count: int
) -> Array:
    """Return the indices of ``kept`` things out of ``count``; the inverse of :func:`encode_gaps`.

    Raises:
        MalformedError: another number of things is kept, an index is not below ``count``, or bits
            beyond the end are not zero.
    """
    ends = np.flatnonzero(_unpack_bits(unary, length))
    require(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    require(kept == 0 or int(ends[-1]) == length - 1, "a gap without an end")
    steps = np.diff(ends, prepend=-1) - 1
    steps <<= k
    bits = _unpack_bits(remainders, kept * k).reshape(kept, k)
    for bit in range(k):
        steps += bits[:, bit].astype(np.int64) << bit
    positions = np.cumsum(steps + 1) - 1
    require(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def encode_mask(positions: Array, count: int) -> bytes:
    """Write one bit for each of ``count`` things, 1 for the kept ones."""
    mask = np.zeros(count, np.uint8)
    mask[positions] = 1
    return _pack_bits(mask)


def decode_mask(data: bytes, kept: int, count: int) -> Array:
    """Return the indices of the kept things; the inverse of :func:`encode_mask`.

    Raises:
        MalformedError: another number of things than ``kept`` is kept, or bits beyond the end are
            not zero.
    """
    positions = np.flatnonzero(_unpack_bits(data, count))
    require(len(positions) == kept, f"{len(positions)} bits set for {kept} kept weights")
    return positions


def encode_bytes(positions: Array) -> bytes:
    """Write every gap as gap // 255 bytes of 255 and one byte of gap % 255."""
    gaps = gaps_of(positions)
    ends = np.cumsum(gaps // 255 + 1) - 1
    written = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    written[ends] = gaps % 255
    return written.tobytes()


def decode_bytes(data: bytes, kept: int, count: int) -> Array:
    """Return the indices of the kept things; the inverse of :func:`encode_bytes`.

    Raises:
        MalformedError: another number of things than ``kept`` is kept, or an index is not below
            ``count``.
    """
    written = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(written < 255)
    require(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    require(len(data) == (int(ends[-1]) + 1 if kept else 0), "a gap without an end")
    positions = np.cumsum(written, dtype=np.int64)[ends] + np.arange(kept)
    require(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def _bytes_for(bits: int) -> int:
    return (bits + 7) // 8


def _pack_bits(bits: Array) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack_bits(data: bytes, length: int) -> Array:
    require(len(data) == _bytes_for(length), "a stream of bits of the wrong length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    require(not bits[length:].any(), "bits beyond the end of a stream")
    return bits[:length]
