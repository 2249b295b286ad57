"""Where the kept weights are, in bits: Rice-coded gaps, a bitmask, or gaps as bytes.

A gap is the number of zeros in front of a kept weight. Rice's code with parameter k (Rice & Plaunt,
IEEE Trans. Commun. 19, 1971; Golomb's code for divisors 2^k) writes ``gap >> k`` in unary, so many
0 bits and a 1, and the k low bits as they are. The two halves are streams of their own, so that
both are read without a loop over the weights. All bits fill bytes from the least significant one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class MalformedError(ValueError):
    """Bytes that no writer of the format makes."""


def need(condition: bool, what: str) -> None:
    """Raise ``MalformedError(what)`` unless the condition holds."""
    if not condition:
        raise MalformedError(what)


def size_of(bits: int) -> int:
    """Return how many bytes hold so many bits."""
    return (bits + 7) // 8


def gaps_of(positions: Array) -> Array:
    """Return the zeros in front of each kept weight: (K,) rising indices -> (K,) gaps ≥ 0."""
    return np.diff(positions, prepend=-1) - 1


def rice_parameter(gaps: Array) -> int:
    """Return the k that makes the code shortest.

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
    """Write the indices of the kept weights.

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
    # Bit by bit: (K, k) of the remainders' bits, the lowest first.
    low = np.empty((len(gaps), k), np.uint8)
    for bit in range(k):
        low[:, bit] = (gaps >> bit) & 1
    return _pack(unary), length, _pack(low.reshape(-1))


def decode_gaps(
    unary: bytes, length: int, remainders: bytes, k: int, kept: int, count: int
) -> Array:
    """Read the indices of ``kept`` weights among ``count``; the inverse of ``encode_gaps``.

    Raises:
        MalformedError: another number of weights, an index that is not below ``count``, or bits
            beyond the end that are not zero.
    """
    ends = np.flatnonzero(_unpack(unary, length))
    need(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    need(kept == 0 or int(ends[-1]) == length - 1, "a gap without an end")
    steps = np.diff(ends, prepend=-1) - 1
    steps <<= k
    low = _unpack(remainders, kept * k).reshape(kept, k)
    for bit in range(k):
        steps += low[:, bit].astype(np.int64) << bit
    positions = np.cumsum(steps + 1) - 1
    need(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def encode_mask(positions: Array, count: int) -> bytes:
    """Write one bit for every one of ``count`` weights, 1 for the kept ones."""
    mask = np.zeros(count, np.uint8)
    mask[positions] = 1
    return _pack(mask)


def decode_mask(data: bytes, kept: int, count: int) -> Array:
    """Read the indices of the kept weights; the inverse of ``encode_mask``.

    Raises:
        MalformedError: another number of weights than ``kept``, or bits beyond the end.
    """
    positions = np.flatnonzero(_unpack(data, count))
    need(len(positions) == kept, f"{len(positions)} bits set for {kept} kept weights")
    return positions


def encode_bytes(positions: Array) -> bytes:
    """Write every gap as gap // 255 bytes of 255 and one byte of gap % 255, for zstd to shorten."""
    gaps = gaps_of(positions)
    ends = np.cumsum(gaps // 255 + 1) - 1
    written = np.full(int(ends[-1]) + 1 if len(ends) else 0, 255, np.uint8)
    written[ends] = gaps % 255
    return written.tobytes()


def decode_bytes(data: bytes, kept: int, count: int) -> Array:
    """Read the indices of the kept weights; the inverse of ``encode_bytes``.

    Raises:
        MalformedError: another number of weights than ``kept``, or an index not below ``count``.
    """
    written = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(written < 255)
    need(len(ends) == kept, f"{len(ends)} gaps for {kept} kept weights")
    need(len(data) == (int(ends[-1]) + 1 if kept else 0), "a gap without an end")
    positions = np.cumsum(written, dtype=np.int64)[ends] + np.arange(kept)
    need(kept == 0 or int(positions[-1]) < count, "a kept weight beyond the end of its tensor")
    return positions


def _pack(bits: Array) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpack(data: bytes, length: int) -> Array:
    need(len(data) == size_of(length), "a stream of bits of the wrong length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    need(not bits[length:].any(), "bits beyond the end of a stream")
    return bits[:length]
