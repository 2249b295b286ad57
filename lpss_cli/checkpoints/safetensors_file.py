"""safetensors files: a strict look at the header before the library makes tensors of it."""

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

from lpss_cli.checkpoints import read_file
from lpss_cli.checkpoints.packed import MAGIC
from lpss_cli.checkpoints.pickle_scan import MOST_TENSORS
from lpss_cli.checkpoints.read_file import changed, opened, unreadable
from lpss_cli.errors import InputError, one_line
from lpss_cli.utils.arrays import Array, LazyTensor, numpy_dtype

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_HEADER = 10_000_000
#: Bytes of one element. Formats of less than a byte are not among them.
_ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
#: PyTorch's names of them.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64",
    "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
# Rows of nothing take memory too, as soon as something is computed for each of them.
_MOST_EMPTY = 1 << 24


def load(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata texts of a file.

    Args:
        path: of the file, for messages.
        data: its content.

    Raises:
        InputError: the header breaks a rule of the format, or is larger than reasonable; the
            library does not know a kind of numbers.
    """
    try:
        names, texts = check(data)
    except (ValueError, RecursionError) as error:  # json's errors and Unicode's are ValueErrors
        raise _damaged(path, error) from None
    from safetensors import SafetensorError
    from safetensors.torch import load as library_load

    try:
        tensors = library_load(data)
        return {name: tensors[name] for name in names}, texts
    except KeyError as kind:  # the library's list for bytes is shorter than that for files
        raise InputError(
            f"{path} holds numbers of a kind that the installed safetensors does not read: {kind}",
            "update safetensors, or save the weights as plain floating-point numbers",
        ) from None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None


def write(path: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Write tensors and texts to a file as it is; :func:`files.atomic_write` gives one.

    Raises:
        OSError: the disk is full or gone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata=texts)
    except SafetensorError as error:  # in it there is what the system has said
        raise OSError(str(error)) from error


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Read and check a file's header alone.

    Returns:
        Its entries, the place of the tensors in the file, and the metadata.

    Raises:
        InputError: the header breaks a rule of the format, or the file cannot be read.
    """
    try:
        total = file.seek(0, 2)
        file.seek(0)
        first = file.read(8)
        length = int.from_bytes(first, "little")
        header, texts = check_header(first + file.read(min(length, _LARGEST_HEADER)), total)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    return header, 8 + length, texts


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is a damaged safetensors file: {one_line(error)[:200]}",
        "make it again, or take another copy",
    )


def check(data: bytes) -> tuple[list[str], dict[str, str]]:
    """Check a file's header by the rules of the format; return names, in order, and metadata.

    The tensors must be of known dtypes, fill exactly the bytes that their shapes need, and cover
    the rest of the file without overlaps and holes; no name may occur twice.

    Raises:
        ValueError: a rule is broken; says which.
    """
    header, texts = check_header(data[: 8 + _LARGEST_HEADER], len(data))
    return list(header), texts


def check_header(head: bytes, total: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a header without the rest of the file; return its entries and the metadata.

    Args:
        head: the file's first bytes, all of the header among them.
        total: length of the file.

    Raises:
        ValueError: a rule is broken; says which.
    """
    size = int.from_bytes(head[:8], "little")
    if size > _LARGEST_HEADER:
        raise ValueError(f"its header is {size:,} bytes long, {_LARGEST_HEADER:,} are the most")
    if len(head) < 8 + size or head[8:9] != b"{":
        raise ValueError("it ends within its header")
    header = json.loads(head[8 : 8 + size].decode(), object_pairs_hook=_unique)
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its metadata are no texts")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"it holds {len(header):,} tensors, {MOST_TENSORS:,} are the most")
    ranges = sorted(_range(name, entry) for name, entry in header.items())
    places = [(0, 0), *ranges, (total - 8 - size,) * 2]
    for (_, end), (begin, _) in pairwise(places):
        if begin != end:
            raise ValueError("its tensors overlap, or do not cover the file")
    return header, texts


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _range(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end."""
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its entry {name[:80]!r} describes no tensor")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _ITEMSIZE:
        raise ValueError(f"its tensor {name[:80]!r} is of the unknown dtype {str(dtype)[:20]!r}")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"shape or place of its tensor {name[:80]!r} are no whole numbers")
    begin, end = offsets
    if end - begin != prod(shape) * _ITEMSIZE[dtype]:
        raise ValueError(f"the bytes of its tensor {name[:80]!r} do not fit its shape")
    if prod(max(extent, 1) for extent in shape) > max(_MOST_EMPTY, prod(shape)):
        raise ValueError(f"its empty tensor {name[:80]!r} has an impossible shape")
    return begin, end


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)


# MERGED: The tensors of a safetensors file, each read when it is asked for: the file may be
# MERGED: larger than
# MERGED: memory. PyTorch is not needed.
# MERGED: The header is checked as that of a file that is read whole. That the file stays the one
# MERGED: that was
# MERGED: opened is checked with every tensor.
def streams(path: Path) -> bool:
    """Whether a file is a safetensors file, whose tensors can be read one at a time.

    Raises:
        InputError: there is no such file, or it is of a kind that is no checkpoint.
    """
    if os.path.isdir(path):  # Path.is_dir fails on names that are too long
        return False
    with opened(path) as file:
        head = file.read(9)
    if head[8:] != b"{":
        return False
    read_file.refuse_others(path, head)
    return not head.startswith(MAGIC) and head[:4] != b"PK\x03\x04"


class Streamed(Mapping[str, Array]):
    """Values by name, in the order of the header; each access reads the file anew.

    Args:
        path: a safetensors file.

    Attributes:
        forms: name → shape and kind of numbers.
        texts: the file's metadata.
        bytes: size of the file.

    Raises:
        InputError: there is no such file, or its header breaks a rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as file:
            self._then = _identity(file)
            header, self._start, self.texts = read_header(path, file)
            self.bytes = os.fstat(file.fileno()).st_size
        self._places = {name: entry["data_offsets"] for name, entry in header.items()}
        self.forms = {name: _stand_in(entry) for name, entry in header.items()}

    def renamed(self, names: Mapping[str, str]) -> Streamed:
        """Return the same file with other names: new name → name here."""
        found = copy.copy(self)
        found._places = {new: self._places[name] for new, name in names.items()}
        found.forms = {new: self.forms[name] for new, name in names.items()}
        return found

    def __getitem__(self, name: str) -> Array:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
            InputError: the file cannot be read, or is not what it was.
        """
        begin, end = self._places[name]
        with opened(self._path) as file:
            try:
                content = np.empty(end - begin, np.uint8)
                file.seek(self._start + begin)
                count = file.readinto(content.data)
            except (OSError, MemoryError) as error:
                raise unreadable(self._path, error) from None
            if count != end - begin or _identity(file) != self._then:
                raise changed(self._path)
        form = self.forms[name]
        return content.view(form.dtype).reshape(form.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)


def _identity(file: BufferedReader) -> tuple[int, ...]:
    """Return what changes when a file is written to, or another takes its place."""
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _stand_in(entry: Mapping[str, Any]) -> LazyTensor:
    return LazyTensor(tuple(entry["shape"]), numpy_dtype(DTYPES[entry["dtype"]]))
