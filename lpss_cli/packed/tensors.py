"""A tensor to its line and sections, and back; arrays hold the tensor's bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import bits, values
from .bits import Array, need
from .entry import Entry
from .sections import load, store
from .values import DTYPES, Coded, stored_type


def encode_dense(name: str, dtype: str, array: Array, compress: bool) -> tuple[Entry, list[bytes]]:
    """Store every entry bit for bit."""
    parts = [store(plane, compress) for plane in values.planes(array.reshape(-1))]
    entry = Entry(name, dtype, array.shape, "dense", array.size)
    return _with(entry, parts), parts


def encode_sparse(
    name: str, dtype: str, array: Array, choice: str, compress: bool
) -> tuple[Entry, list[bytes]]:
    """Store where the kept weights are and their values; ``-0.0`` is a zero like the other.

    Args:
        name: of the tensor.
        dtype: a name of ``values.FLOATS``.
        array: finite, of any shape.
        choice: a name of ``values.CHOICES``.
        compress: use zstd where it helps.
    """
    flat = array.reshape(-1)
    positions = np.flatnonzero(flat & 0x7FFF if dtype == "bfloat16" else flat)
    width = max(1, flat.size // max(1, _rows(array)))
    coded = values.encode(flat[positions], dtype, positions // width, _rows(array), choice)
    entry = Entry(name, dtype, array.shape, "dense", len(positions), values=coded.code)
    entry, parts = _index(entry, positions, coded.stored.itemsize, compress)
    stored = coded.stored
    if entry.index == "dense":
        stored = np.zeros(flat.size, stored.dtype)
        stored[positions] = coded.stored
    scales = values.planes(coded.scales) if values.has_scales(coded.code) else []
    parts += [store(plane, compress) for plane in (*scales, *values.planes(stored))]
    return _with(entry, parts), parts


def _index(
    entry: Entry, positions: Array, value_bytes: int, compress: bool
) -> tuple[Entry, list[bytes]]:
    """Choose the shortest way to say where the kept weights are, by its length in the file."""
    k = bits.rice_parameter(bits.gaps_of(positions))
    unary, length, low = bits.encode_gaps(positions, k)
    gaps = [store(unary, compress), store(low, compress)]
    mask = [store(bits.encode_mask(positions, entry.count), compress)]
    zeros = (entry.count - entry.kept) * value_bytes
    costs = {"dense": zeros, "mask": len(mask[0]), "gaps": sum(map(len, gaps))}
    best = min(costs, key=lambda name: costs[name])
    if best == "gaps":
        return replace(entry, index=best, rice=k, unary=length), gaps
    if best == "mask":
        return replace(entry, index=best), mask
    return replace(entry, index=best, kept=entry.count), []


def decode(entry: Entry, stored: Sequence[bytes], earlier: Sequence[Array]) -> Array:
    """Return a tensor's bits in its shape.

    Args:
        entry: its line.
        stored: its sections as the file holds them.
        earlier: the tensors before it in the table.

    Raises:
        MalformedError: the sections are not what the line says.
    """
    if entry.index == "same":
        other = earlier[entry.same]
        same = other.dtype == np.dtype(DTYPES[entry.dtype]) and other.shape == entry.shape
        need(same, f"{entry.name!r:.80} is the same as a tensor of another kind")
        copied: Array = other.copy()
        return copied
    parts = [load(data, size) for data, size in zip(stored, entry.lengths(), strict=True)]
    positions = _positions(entry, parts)
    coded = _values(entry, parts)
    width = max(1, entry.count // max(1, entry.rows))
    kept = values.decode(coded, entry.dtype, positions // width if len(coded.scales) else positions)
    # Asked of the kept ones alone: the memory of zeros is not touched and so not taken yet.
    need(values.finite(kept, entry.dtype), f"values that are not finite in {entry.name!r:.80}")
    if entry.index == "dense":
        return kept.reshape(entry.shape)
    array = np.zeros(entry.count, DTYPES[entry.dtype])
    array[positions] = kept
    return array.reshape(entry.shape)


def _positions(entry: Entry, parts: Sequence[bytes]) -> Array:
    if entry.index == "gaps":
        return bits.decode_gaps(
            parts[0], entry.unary, parts[1], entry.rice, entry.kept, entry.count
        )
    if entry.index == "mask":
        return bits.decode_mask(parts[0], entry.kept, entry.count)
    scaled = values.has_scales(entry.values)
    return np.arange(entry.count if scaled else 0)  # only a scale has to know its rows


def _values(entry: Entry, parts: list[bytes]) -> Coded:
    kind = stored_type(entry.values, entry.dtype)
    scales = np.zeros(0, np.float32)
    if values.has_scales(entry.values):
        scales = values.join(parts[-kind.itemsize - 4 : -kind.itemsize], np.dtype("<f4"))
    return Coded(entry.values, values.join(parts[-kind.itemsize :], kind), scales)


def _rows(array: Array) -> int:
    return array.shape[0] if array.ndim else 1


def _with(entry: Entry, parts: Sequence[bytes]) -> Entry:
    return replace(entry, sections=tuple(map(len, parts)))
