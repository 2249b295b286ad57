"""The kept weights' values as codes of 1, 2 or more bytes, and as planes of equal bytes.

Every code is tried on the tensor at hand: one under which a kept weight would become zero or
infinite is not taken, and the next, more accurate one is tried.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lpss_cli.checkpoints.packed.coding import Array, MalformedError

#: What may be asked for, and the codes that are tried for it, in this order.
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
#: Code -> type that is stored; ``raw`` stores the tensor's own.
STORED = {"fp16": "<f2", "fp16-rows": "<f2", "bf16": "<u2", "int8-rows": "|i1"}
#: Tensor type -> how its bits are held: NumPy has no bfloat16.
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
#: The types whose values may be rounded.
FLOATS = ("float64", "float32", "float16", "bfloat16")
_SMALLEST = np.float32(2.0**-126)  # a scale below it would lose digits of its own


@dataclass(frozen=True)
class Coded:
    """Values as they are stored.

    Attributes:
        code: a name of ``STORED``, or ``raw``.
        stored: (K,) of the code's type.
        scales: (rows,) float32 factors of a code by rows; empty for the others.
    """

    code: str
    stored: Array
    scales: Array


def has_scales(code: str) -> bool:
    """Whether a code has a factor for every row."""
    return code.endswith("-rows")


def stored_type(code: str, dtype: str) -> np.dtype[np.generic]:
    """Return the type in which a code stores values of a tensor type."""
    return np.dtype(DTYPES[dtype] if code == "raw" else STORED[code])


def encode(values: Array, dtype: str, rows: Array, count: int, codes: Collection[str]) -> Coded:
    """Store values by the first code under which those that are not zero stay so.

    Args:
        values: (K,) finite, bits of the tensor type.
        dtype: a name of ``FLOATS``.
        rows: (K,) row of each value, in [0, count).
        count: number of rows.
        codes: those of a choice; ``raw`` is taken where none of them does.
    """
    for code in codes:
        if code != "raw" and stored_type(code, dtype).itemsize < np.dtype(DTYPES[dtype]).itemsize:
            coded = _encode(code, to_float(values, dtype), rows, count)
            if coded is not None and _keeps(decode(coded, dtype, rows), values, dtype):
                return coded
    return Coded("raw", values, np.zeros(0, np.float32))


def decode(coded: Coded, dtype: str, rows: Array) -> Array:
    """Return the values as bits of the tensor type; the inverse of ``encode``, rounding aside."""
    if coded.code == "raw":
        return coded.stored
    name = {"bf16": "bfloat16", "int8-rows": "int8"}.get(coded.code, "float16")
    values = to_float(coded.stored, name)
    if has_scales(coded.code):
        with np.errstate(all="ignore"):
            values = values * coded.scales[rows]
    return _from_float(values, dtype)


def to_float(values: Array, dtype: str) -> Array:
    """Return float32 values; bits of bfloat16 are the upper half of those of float32."""
    if dtype == "bfloat16":
        bits: Array = values.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
    with np.errstate(all="ignore"):
        return values.astype(np.float32)


def _from_float(values: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return _to_bf16(values)
    with np.errstate(all="ignore"):
        return values.astype(DTYPES[dtype])


def _to_bf16(values: Array) -> Array:
    """Round finite float32 to the nearest bfloat16, ties to the even one."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper: Array = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return upper.astype(np.uint16)


def _encode(code: str, values: Array, rows: Array, count: int) -> Coded | None:
    """Store float32 values; None where a code by rows has no proper scale."""
    none = np.zeros(0, np.float32)
    if code == "bf16":
        return Coded(code, _to_bf16(values), none)
    if code == "fp16":
        return Coded(code, _from_float(values, "float16"), none)
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, rows, np.abs(values))
    live = largest > 0
    scales = np.ones(count, np.float32)
    with np.errstate(all="ignore"):
        if code == "int8-rows":
            scales[live] = largest[live] / np.float32(127)
        else:  # a power of two, exact: the row's largest value comes to lie in [2^13, 2^14)
            scales[live] = np.ldexp(np.float32(1), np.frexp(largest[live])[1] - 14)
        if not np.isfinite(scales).all() or (scales < _SMALLEST).any():
            return None
        quotients = values / scales[rows]
    if code == "fp16-rows":
        return Coded(code, _from_float(quotients, "float16"), scales)
    steps = np.clip(np.rint(quotients), -127, 127)
    # A kept weight under half a step takes a whole one: the pattern of zeros is the network's.
    steps = np.where(steps == 0, np.sign(values), steps)
    return Coded(code, steps.astype(np.int8), scales)


def _keeps(stored: Array, values: Array, dtype: str) -> bool:
    """Whether values come back finite, and zero where they were zero and nowhere else."""
    same = (to_float(stored, dtype) == 0) == (to_float(values, dtype) == 0)
    return finite(stored, dtype) and bool(same.all())


def finite(values: Array, dtype: str) -> bool:
    """Whether bits of a tensor type are all finite numbers."""
    if dtype == "bfloat16":
        values = to_float(values, dtype)
    return dtype not in FLOATS or bool(np.isfinite(values).all())


def planes(values: Array) -> list[bytes]:
    """Split (K,) values into one string for each of their bytes, the least significant first."""
    size = values.dtype.itemsize
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    table = np.ascontiguousarray(little).view(np.uint8).reshape(-1, size)
    return [np.ascontiguousarray(table[:, byte]).tobytes() for byte in range(size)]


def join(parts: list[bytes], dtype: np.dtype[np.generic]) -> Array:
    """Put planes together again; the inverse of ``planes``.

    Raises:
        MalformedError: planes of different lengths.
    """
    if len({len(part) for part in parts}) != 1 or len(parts) != dtype.itemsize:
        raise MalformedError("planes of different lengths")
    table = np.empty((len(parts[0]), len(parts)), np.uint8)
    for byte, part in enumerate(parts):
        table[:, byte] = np.frombuffer(part, np.uint8)
    return table.reshape(-1).view(dtype)
