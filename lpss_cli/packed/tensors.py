"""A tensor to its line, sections and planes, and back; arrays hold the tensor's bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lpss_cli.packed import grid, values
from lpss_cli.packed.bits import Array, need
from lpss_cli.packed.entry import Entry, whole
from lpss_cli.packed.values import DTYPES, Coded, stored_type


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
    chosen = grid.encode(entry, positions, coded.stored.itemsize, 4 if scaled else 0, compress)
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
    found = grid.decode(entry, parts)
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
