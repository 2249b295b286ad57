"""The tensors of a safetensors file, each read when it is asked for: the file may be larger than
memory.

The header is checked as that of a file that is read whole. That the file stays the one that was
opened is checked with every tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints.safetensorsfile import DTYPES, read_header
from lpss_cli.checkpoints.snapshot import changed, opened
from lpss_cli.errors import InputError


class Streamed(Mapping[str, Tensor]):
    """Tensors by name, in the order of the header; each access reads the file anew.

    Args:
        path: a safetensors file.

    Attributes:
        shapes: name → a stand-in on PyTorch's ``meta`` device: shape and dtype without values.
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
        self.shapes = {name: _stand_in(entry) for name, entry in header.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
            InputError: the file cannot be read, or is not what it was.
        """
        begin, end = self._places[name]
        # Not empty_like: on a stand-in it imports a system of computer algebra.
        tensor, count = torch.empty(self.shapes[name].shape, dtype=self.shapes[name].dtype), 0
        with opened(self._path) as file:
            try:
                file.seek(self._start + begin)
                if end > begin:  # what has no bytes has no view as bytes
                    count = file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
            except OSError as error:
                raise InputError(
                    f"{self._path} cannot be read: {error.strerror}", "check the disk"
                ) from None
            if count != end - begin or _identity(file) != self._then:
                raise changed(self._path)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Renamed(Mapping[str, Tensor]):
    """Streamed tensors under other names.

    Args:
        tensors: the file's own.
        names: new name → name in the file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _identity(file: BufferedReader) -> tuple[int, ...]:
    """Return what changes when a file is written to, or another takes its place."""
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _stand_in(entry: Mapping[str, Any]) -> Tensor:
    return torch.empty(entry["shape"], dtype=getattr(torch, DTYPES[entry["dtype"]]), device="meta")
