"""The tensors of a safetensors file, each read when it is asked for: the file may be larger than
memory. PyTorch is not needed.

The header is checked as that of a file that is read whole. That the file stays the one that was
opened is checked with every tensor.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from lpss_cli.checkpoints import kinds
from lpss_cli.checkpoints.safetensorsfile import DTYPES, read_header
from lpss_cli.checkpoints.snapshot import changed, opened, unreadable
from lpss_cli.packed import MAGIC
from lpss_cli.utils.arrays import Array, LazyTensor, dtype_of


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
    kinds.refuse_others(path, head)
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
    return LazyTensor(tuple(entry["shape"]), dtype_of(DTYPES[entry["dtype"]]))
