"""Tensors as NumPy arrays with exactly their values, and tensors known by shape alone.

Nothing here imports PyTorch, so a report can be made without it. NumPy itself has neither bfloat16
nor 8-bit floating-point numbers; ml_dtypes adds them.
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

# Entries that are processed together: what is computed from them stays in the CPU's cache.
_BLOCK = 1 << 16
# Bytes, more than all arrays take that are computed from a block.
_BLOCK_MEMORY = 1 << 22
#: Dtypes that ml_dtypes adds; PyTorch calls them by the same names.
_ADDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    )
}  # fmt: skip


class TensorSpec(Protocol):
    """The part of a PyTorch tensor that does not touch its values; a tensor satisfies it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension."""

    def dim(self) -> int:
        """Return the number of dimensions."""

    def numel(self) -> int:
        """Return the number of entries."""

    def element_size(self) -> int:
        """Return the bytes of one entry."""

    def is_floating_point(self) -> bool:
        """Whether the entries are real floating-point numbers."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are still in its file.

    Attributes:
        shape: size of every dimension.
        dtype: type of its entries.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Return the bytes of one entry."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether the entries are real floating-point numbers."""
        return is_floating(self.dtype)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype that PyTorch calls ``torch.{name}``.

    Raises:
        TypeError: neither NumPy nor ml_dtypes has it.
    """
    return _ADDED[name] if name in _ADDED else np.dtype(name)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether the entries of a dtype are real floating-point numbers."""
    return dtype.kind == "f" or dtype in _ADDED.values()


def to_numpy(values: Tensor | Array) -> Array:
    """Return the values of a tensor: a view of its memory if it is on the CPU; arrays unchanged.

    Raises:
        TypeError: neither NumPy nor ml_dtypes has its dtype.
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
    """Convert real floating-point numbers to float32, which holds all shorter ones exactly.

    float64 is returned unchanged.
    """
    if array.dtype.itemsize >= 4:
        return array
    if array.dtype == _ADDED["bfloat16"]:
        return array.astype(np.float32)
    # A look-up is several times as fast as the libraries' conversion of one number at a time.
    return _float32_table(array.dtype).take(array.view(_unsigned(array.dtype)))


@cache
def _float32_table(dtype: np.dtype[Any]) -> Array:
    """Return all numbers of a short dtype as float32, in the order of their bits."""
    bits = _unsigned(dtype)
    with np.errstate(invalid="ignore"):
        return np.arange(1 << 8 * dtype.itemsize, dtype=bits).view(dtype).astype(np.float32)


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned integers of the same size."""
    return np.dtype(f"u{dtype.itemsize}")


def row_blocks(rows: Array) -> Iterator[Array]:
    """Yield the rows of an array as float32 (or float64), a block of whole rows at a time.

    Args:
        rows: (rows, …) of any dtype that :func:`to_float32` takes.

    Yields:
        (at least one row, fan-in), as :func:`to_float32` converts them.
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

    glibc returns it to the system each time, and new memory costs more than everything that is
    computed in it. Freeing something larger once, which is never written to, changes that.
    """
    np.empty(_BLOCK_MEMORY, np.uint8)


@np.errstate(over="ignore")
def finite_or_zero(array: Array) -> Array:
    """Convert float32 or float64 to float32, with 0 for what is not finite or too large for it."""
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
        # A quick test: any NaN or infinity makes the sum NaN or infinite.
        if not np.isfinite(block.sum(dtype=np.float64))
    )
