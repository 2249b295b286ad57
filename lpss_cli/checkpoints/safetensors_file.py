"""safetensors files: read whole, read one tensor at a time, and written.

The header is checked strictly before the library makes tensors of it. :class:`TensorReader` reads
each tensor when it is asked for, so the file may be larger than memory, and needs no PyTorch.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lpss_cli.checkpoints.pickle_scan import MAX_TENSORS
from lpss_cli.checkpoints.read_file import (
    changed_error,
    is_safetensors,
    open_regular,
    refuse_other_formats,
    unreadable_error,
)
from lpss_cli.errors import InputError, one_line
from lpss_cli.utils.arrays import Array, LazyTensor, numpy_dtype

if TYPE_CHECKING:
    from torch import Tensor

#: The dtypes of the format, by PyTorch's names. Those of less than a byte are not among them.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64",
    "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
# Bytes of one element.
_ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MAX_HEADER = 10_000_000
# An empty tensor may have that many rows. They take memory as soon as something is computed for
# each row.
_MAX_EMPTY = 1 << 24


def load(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file in the order of its header, and its metadata.

    Args:
        path: name of the file, for messages.
        data: content of the file.

    Raises:
        InputError: the header breaks a rule of the format or is larger than reasonable, or the
            library does not know a dtype.
    """
    try:
        header, metadata = check_header(data[: 8 + _MAX_HEADER], len(data))
    except (ValueError, RecursionError) as error:  # json's and Unicode's errors are ValueErrors
        raise _damaged(path, error) from None
    from safetensors import SafetensorError
    from safetensors.torch import load as library_load

    try:
        tensors = library_load(data)
        return {name: tensors[name] for name in header}, metadata
    except KeyError as dtype:  # the library knows fewer dtypes when it reads bytes than from files
        raise InputError(
            f"{path} holds numbers of a kind that the installed safetensors does not read: {dtype}",
            "update safetensors, or save the weights as plain floating-point numbers",
        ) from None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata straight to a file, such as one from :func:`files.atomic_write`.

    Raises:
        OSError: the disk is full or gone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # its text is the system's error
        raise OSError(str(error)) from error


def can_stream(path: Path) -> bool:
    """Return whether a file is a safetensors file, whose tensors can be read one at a time.

    Raises:
        InputError: the file does not exist, or is of a format that is not a checkpoint.
    """
    if os.path.isdir(path):  # Path.is_dir fails on names that are too long
        return False
    with open_regular(path) as file:
        head = file.read(9)
    if not is_safetensors(head):
        return False
    refuse_other_formats(path, head)
    return True


class TensorReader(Mapping[str, Array]):
    """The tensors of a safetensors file by name, in the order of the header.

    Each access reads one tensor from the file, and checks that the file is still the one that was
    opened.

    Args:
        path: a safetensors file.

    Attributes:
        specs: name → shape and dtype.
        metadata: the texts in the file's header.
        file_bytes: size of the file.

    Raises:
        InputError: the file does not exist, or its header breaks a rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_regular(path) as file:
            self._identity = _identity(file)
            header, self._start, self.metadata = read_header(path, file)
            self.file_bytes = os.fstat(file.fileno()).st_size
        self._offsets = {name: entry["data_offsets"] for name, entry in header.items()}
        self.specs = {name: _spec(entry) for name, entry in header.items()}

    def renamed(self, names: Mapping[str, str]) -> TensorReader:
        """Return a reader of the same file with other names.

        Args:
            names: new name → name in this reader. Tensors that it does not mention are left out.
        """
        reader = copy.copy(self)
        reader._offsets = {new: self._offsets[name] for new, name in names.items()}
        reader.specs = {new: self.specs[name] for new, name in names.items()}
        return reader

    def __getitem__(self, name: str) -> Array:
        """Read one tensor.

        Raises:
            KeyError: no tensor has this name.
            InputError: the file cannot be read, or has changed since it was opened.
        """
        begin, end = self._offsets[name]
        with open_regular(self._path) as file:
            try:
                content = np.empty(end - begin, np.uint8)
                file.seek(self._start + begin)
                count = file.readinto(content.data)
            except (OSError, MemoryError) as error:
                raise unreadable_error(self._path, error) from None
            if count != end - begin or _identity(file) != self._identity:
                raise changed_error(self._path)
        spec = self.specs[name]
        return content.view(spec.dtype).reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def _identity(file: BufferedReader) -> tuple[int, ...]:
    """Return what changes when a file is written to, or another file takes its place."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _spec(entry: Mapping[str, Any]) -> LazyTensor:
    return LazyTensor(tuple(entry["shape"]), numpy_dtype(DTYPES[entry["dtype"]]))


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Read and check a file's header alone.

    Args:
        path: name of the file, for messages.
        file: the file, opened for reading.

    Returns:
        The header's entries by tensor name, the offset of the tensors' bytes in the file, and the
        metadata.

    Raises:
        InputError: the header breaks a rule of the format, or the file cannot be read.
    """
    try:
        total = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        header, metadata = check_header(prefix + file.read(min(length, _MAX_HEADER)), total)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return header, 8 + length, metadata


def check_header(head: bytes, total: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a header by the rules of the format; return its entries by name and the metadata.

    The tensors must have known dtypes, fill exactly the bytes that their shapes need, and cover the
    rest of the file without overlaps or holes. No name may occur twice.

    Args:
        head: first bytes of the file, with the whole header among them.
        total: length of the file in bytes.

    Raises:
        ValueError: a rule is broken; the message says which.
    """
    size = int.from_bytes(head[:8], "little")
    if size > _MAX_HEADER:
        raise ValueError(f"its header is {size:,} bytes long, {_MAX_HEADER:,} are the most")
    if len(head) < 8 + size or head[8:9] != b"{":
        raise ValueError("it ends within its header")
    header = json.loads(head[8 : 8 + size].decode(), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", {})
    is_text = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not is_text:
        raise ValueError("its metadata is not text")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it holds {len(header):,} tensors, {MAX_TENSORS:,} are the most")
    ranges = sorted(_byte_range(name, entry) for name, entry in header.items())
    bounds = [(0, 0), *ranges, (total - 8 - size,) * 2]
    for (_, end), (begin, _) in pairwise(bounds):
        if begin != end:
            raise ValueError("its tensors overlap, or do not cover the file")
    return header, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return entries


def _byte_range(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end."""
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its entry {name[:80]!r} does not describe a tensor")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _ITEMSIZE:
        raise ValueError(f"its tensor {name[:80]!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"shape or offsets of its tensor {name[:80]!r} are not whole numbers")
    begin, end = offsets
    if end - begin != prod(shape) * _ITEMSIZE[dtype]:
        raise ValueError(f"the bytes of its tensor {name[:80]!r} do not fit its shape")
    if prod(max(extent, 1) for extent in shape) > max(_MAX_EMPTY, prod(shape)):
        raise ValueError(f"its empty tensor {name[:80]!r} has an impossible shape")
    return begin, end


def _are_counts(values: Any) -> bool:
    """Return whether a value is a list of whole numbers from 0 up that fit 64 bits."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is a damaged safetensors file: {one_line(error)[:200]}",
        "make it again, or take another copy",
    )
