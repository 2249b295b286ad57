"""Tensors as NumPy arrays, their values exactly: nothing here imports PyTorch.

NumPy itself has neither bfloat16 nor floating-point numbers of 8 bits; ml_dtypes adds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

# Entries that are looked at together: what is computed from them stays in the cache.
_BLOCK = 1 << 16
# Bytes, more than all arrays take that are computed from a block.
_AROUND = 1 << 22
#: Kinds of numbers that ml_dtypes adds, by PyTorch's names, which are its own too.
_ADDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    )
}  # fmt: skip


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype that PyTorch calls ``torch.{name}``.

    Raises:
        TypeError: neither NumPy nor ml_dtypes has it.
    """
    return _ADDED[name] if name in _ADDED else np.dtype(name)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether numbers are real floating-point ones."""
    return dtype.kind == "f" or dtype in _ADDED.values()


def to_numpy(values: Tensor | Array) -> Array:
    """Return the values of a tensor: its own memory where it lies on the CPU; arrays as they are.

    Raises:
        TypeError: neither NumPy nor ml_dtypes has its kind of numbers.
    """
    if isinstance(values, np.ndarray):
        return values
    name = str(values.dtype).removeprefix("torch.")
    if name not in _ADDED:
        return values.numpy(force=True)
    import torch

    bits = values.detach().view(torch.uint8 if values.element_size() == 1 else torch.int16)
    return bits.numpy(force=True).view(_ADDED[name])


def to_float32(array: Array) -> Array:
    """Return real floating-point numbers as float32, which holds those of all shorter kinds.

    float64 stays what it is.
    """
    if array.dtype.itemsize >= 4:
        return array
    if array.dtype == _ADDED["bfloat16"]:
        return array.astype(np.float32)
    # Several times as fast as what the libraries do, number by number.
    return _table(array.dtype).take(array.view(_whole(array.dtype)))


def row_blocks(rows: Array) -> Iterator[Array]:
    """Yield rows of real floating-point numbers, some at a time and never less than one.

    Args:
        rows: (rows, …) of any kind that :func:`floats` takes.

    Yields:
        (some rows, fan-in), as :func:`floats` makes them.
    """
    _keep_freed_memory()
    fan_in = math.prod(rows.shape[1:])
    step = max(1, _BLOCK // max(1, fan_in))
    for begin in range(0, len(rows), step):
        block = rows[begin : begin + step]
        yield to_float32(block.reshape(len(block), fan_in))


@cache
def _keep_freed_memory() -> None:
    """Let the memory of one block serve the next.

    glibc gives it back to the system each time, and new memory costs more than all that is computed
    in it. Something larger that was freed tells it not to; it is never written to.
    """
    np.empty(_AROUND, np.uint8)


@cache
def _table(dtype: np.dtype[Any]) -> Array:
    """Return all numbers of a short kind as float32, in the order of their bits."""
    whole = _whole(dtype)
    with np.errstate(invalid="ignore"):
        return np.arange(1 << 8 * dtype.itemsize, dtype=whole).view(dtype).astype(np.float32)


def _whole(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


@np.errstate(over="ignore")
def finite_or_zero(array: Array) -> Array:
    """Return float32 or float64 as float32; 0 in place of what is not finite, or too large."""
    values = array.astype(np.float32, copy=False)
    return np.where(np.isfinite(values), values, np.float32(0.0))


@np.errstate(invalid="ignore", over="ignore")
def count_non_finite(values: Tensor | Array) -> int:
    """Count the entries that are NaN or infinite; 0 for whole numbers."""
    array = to_numpy(values)
    if array.dtype.kind == "c":
        return array.size - int(np.count_nonzero(np.isfinite(array)))
    if not is_floating(array.dtype):
        return 0
    return sum(
        block.size - int(np.count_nonzero(np.isfinite(block)))
        for block in row_blocks(array.reshape(-1, 1))
        if not np.isfinite(block.sum(dtype=np.float64))  # quick, and no sum of others is
    )


# MERGED: What is known of tensors without their values: names, shapes, kinds of numbers.
class TensorSpec(Protocol):
    """The part of a PyTorch tensor that does not touch its values: a tensor is one of these."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every dimension."""

    def dim(self) -> int:
        """Count the dimensions."""

    def numel(self) -> int:
        """Count the entries."""

    def element_size(self) -> int:
        """Return the bytes of one entry."""

    def is_floating_point(self) -> bool:
        """Whether the numbers are real floating-point ones."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
        shape: extent of every dimension.
        dtype: kind of its numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def dim(self) -> int:
        """Count the dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Count the entries."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Return the bytes of one entry."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether the numbers are real floating-point ones."""
        return is_floating(self.dtype)
