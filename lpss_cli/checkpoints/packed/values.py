"""The kept weights' values as codes of one, two or more bytes, and as planes of equal bytes.

Every code is tried on the tensor at hand. A code under which a kept weight would become zero or
infinite is not used, and the next, more accurate one is tried.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lpss_cli.checkpoints.packed.coding import Array, MalformedError

#: What a user can ask for → the codes that are tried for it, in this order.
CHOICES: dict[str, tuple[str, ...]] = {
    "fp32": ("raw",),
    "fp16": ("fp16", "fp16-rows", "bf16", "raw"),
    "bf16": ("bf16", "raw"),
    "int8": ("int8-rows", "fp16", "fp16-rows", "bf16", "raw"),
}
#: The same for tensors that are stored whole, such as biases.
WHOLE_CHOICES: dict[str, tuple[str, ...]] = {
    "fp32": ("raw",),
    "fp16": ("fp16", "raw"),
    "bf16": ("bf16", "raw"),
}
#: Code → dtype of the stored values; ``raw`` stores the tensor's own.
STORED = {"fp16": "<f2", "fp16-rows": "<f2", "bf16": "<u2", "int8-rows": "|i1"}
#: Dtype of the tensor → dtype of the array that holds its bits: NumPy has no bfloat16.
DTYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|u1",
}
#: The dtypes whose values may be rounded.
FLOATS = ("float64", "float32", "float16", "bfloat16")
_MIN_SCALE = np.float32(2.0**-126)  # a smaller scale would lose digits of its own


@dataclass(frozen=True)
class CodedValues:
    """Values as they are stored.

    Attributes:
        code: a key of ``STORED``, or ``raw``.
        stored: (K,) values in the code's dtype.
        scales: (rows,) float32 factors of a code with scales; empty for the others.
    """

    code: str
    stored: Array
    scales: Array


def has_scales(code: str) -> bool:
    """Return whether a code has a factor for every row."""
    return code.endswith("-rows")


def stored_type(code: str, dtype: str) -> np.dtype[np.generic]:
    """Return the dtype in which a code stores the values of a tensor of type ``dtype``."""
    return np.dtype(DTYPES[dtype] if code == "raw" else STORED[code])


def encode(
    values: Array, dtype: str, rows: Array, count: int, codes: Collection[str]
) -> CodedValues:
    """Store values by the first code under which nonzero values stay nonzero.

    Args:
        values: (K,) finite values, as bits of the tensor's dtype.
        dtype: one of ``FLOATS``.
        rows: (K,) row of each value, in [0, count).
        count: number of rows.
        codes: the codes to try; ``raw`` is used if none of them works.
    """
    for code in codes:
        if code != "raw" and stored_type(code, dtype).itemsize < np.dtype(DTYPES[dtype]).itemsize:
            coded = _encode(code, to_float(values, dtype), rows, count)
            if coded is not None and _keeps_zeros(decode(coded, dtype, rows), values, dtype):
                return coded
    return CodedValues("raw", values, np.zeros(0, np.float32))


def decode(coded: CodedValues, dtype: str, rows: Array) -> Array:
    """Return (K,) values as bits of the tensor's dtype; inverts :func:`encode` up to rounding."""
    if coded.code == "raw":
        return coded.stored
    name = {"bf16": "bfloat16", "int8-rows": "int8"}.get(coded.code, "float16")
    values = to_float(coded.stored, name)
    if has_scales(coded.code):
        with np.errstate(all="ignore"):
            values = values * coded.scales[rows]
    return _from_float(values, dtype)


def all_finite(values: Array, dtype: str) -> bool:
    """Return whether bits of a tensor's dtype are all finite numbers."""
    if dtype == "bfloat16":
        values = to_float(values, dtype)
    return dtype not in FLOATS or bool(np.isfinite(values).all())


def split_planes(values: Array) -> list[bytes]:
    """Split (K,) values into one string for each of their bytes, the least significant first."""
    size = values.dtype.itemsize
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    table = np.ascontiguousarray(little).view(np.uint8).reshape(-1, size)
    return [np.ascontiguousarray(table[:, byte]).tobytes() for byte in range(size)]


def join_planes(planes: list[bytes], dtype: np.dtype[np.generic]) -> Array:
    """Put planes together again; the inverse of :func:`split_planes`.

    Raises:
        MalformedError: the planes have different lengths.
    """
    if len({len(plane) for plane in planes}) != 1 or len(planes) != dtype.itemsize:
        raise MalformedError("planes of different lengths")
    table = np.empty((len(planes[0]), len(planes)), np.uint8)
    for byte, plane in enumerate(planes):
        table[:, byte] = np.frombuffer(plane, np.uint8)
    return table.reshape(-1).view(dtype)


def to_float(values: Array, dtype: str) -> Array:
    """Return values as float32; the bits of bfloat16 are the upper half of those of float32."""
    if dtype == "bfloat16":
        bits: Array = values.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def _from_float(values: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return _to_bfloat16(values)
    with np.errstate(all="ignore"):
        return values.astype(DTYPES[dtype])


def _to_bfloat16(values: Array) -> Array:
    """Round finite float32 values to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper: Array = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return upper.astype(np.uint16)


def _encode(code: str, values: Array, rows: Array, count: int) -> CodedValues | None:
    """Store float32 values; None if a row has no scale that float32 holds without loss."""
    no_scales = np.zeros(0, np.float32)
    if code == "bf16":
        return CodedValues(code, _to_bfloat16(values), no_scales)
    if code == "fp16":
        return CodedValues(code, _from_float(values, "float16"), no_scales)
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, rows, np.abs(values))
    live = largest > 0
    scales = np.ones(count, np.float32)
    with np.errstate(all="ignore"):
        if code == "int8-rows":
            scales[live] = largest[live] / np.float32(127)
        else:  # a power of two, exact: it brings the row's largest value into [2^13, 2^14)
            scales[live] = np.ldexp(np.float32(1), np.frexp(largest[live])[1] - 14)
        if not np.isfinite(scales).all() or (scales < _MIN_SCALE).any():
            return None
        quotients = values / scales[rows]
    if code == "fp16-rows":
        return CodedValues(code, _from_float(quotients, "float16"), scales)
    steps = np.clip(np.rint(quotients), -127, 127)
    # A kept weight below half a step becomes a whole step, so that the zeros stay the network's.
    steps = np.where(steps == 0, np.sign(values), steps)
    return CodedValues(code, steps.astype(np.int8), scales)


def _keeps_zeros(stored: Array, values: Array, dtype: str) -> bool:
    """Return whether values come back finite, and zero exactly where they were zero."""
    same = (to_float(stored, dtype) == 0) == (to_float(values, dtype) == 0)
    return all_finite(stored, dtype) and bool(same.all())
