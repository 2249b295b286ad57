"""The tensors of a file, read block by block, and their magnitudes as whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lpss_cli.errors import InputError

#: Entries of a block, whose temporaries should stay in the cache.
SIZE = 1 << 20
#: safetensors dtypes that are cut, as NumPy's.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its name, dtype, place and number of entries."""

    name: str
    dtype: str
    begin: int  # in the file
    count: int

    @property
    def blocks(self) -> int:
        """Number of blocks it is read in."""
        return -(-self.count // SIZE)


def blocks(
    file: BinaryIO, tensor: Entry, shift: int = 0, *, every: int = 1, first: int = 0
) -> Iterator[NDArray[Any]]:
    """Read a tensor of a known dtype in blocks.

    ``shift`` is how much later it lies; of ``every`` so many blocks one is read, from ``first`` on.

    Raises:
        InputError: the file ends before it.
    """
    dtype = DTYPES[tensor.dtype]
    for begin in range(first * SIZE, tensor.count, every * SIZE):
        count = min(SIZE, tensor.count - begin)
        file.seek(tensor.begin + shift + begin * dtype.itemsize)
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        yield np.frombuffer(data, dtype)


def keys_of(block: NDArray[Any]) -> Keys:
    """Return whole numbers that are ordered as the magnitudes: float32 bits without the sign."""
    if block.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        keys: Keys = (block & np.uint16(0x7FFF)).astype(np.uint32) << np.uint32(16)
    else:
        keys = block.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return keys


def copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    """Copy so many bytes from where ``source`` stands.

    Raises:
        InputError: there are fewer.
    """
    while count:
        data = source.read(min(count, 4 * SIZE))
        if not data:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        to.write(data)
        count -= len(data)


def equal(a: BinaryIO, b: BinaryIO, begin: int, shift: int, count: int) -> bool:
    """Whether so many bytes are the same in two files; in ``b`` they lie ``shift`` later."""
    a.seek(begin)
    b.seek(begin + shift)
    sizes = (min(left, 4 * SIZE) for left in range(count, 0, -4 * SIZE))
    return all(a.read(size) == b.read(size) for size in sizes)
