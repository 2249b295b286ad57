"""Files with the state of an unfinished run, beside its output.

``OUT.partial`` is the newest state, ``OUT.partial.old`` the one before it. Each is a ``torch.save``
file of plain containers and tensors with a digest of its content. A file is read back before it
replaces another. If the newest file is damaged later, the previous one takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints import torch_file
from lpss_cli.checkpoints.read_file import read_bytes
from lpss_cli.errors import InputError, one_line
from lpss_cli.utils import digest
from lpss_cli.utils.files import atomic_write, write_error


def paths_of(out: Path) -> tuple[Path, Path]:
    """Return the files of an output: ``model.pt.partial`` and ``model.pt.partial.old``."""
    return Path(f"{out}.partial"), Path(f"{out}.partial.old")


class TrainingStateFiles:
    """The two newest saved states of one run.

    Args:
        out: output of the run.
    """

    def __init__(self, out: Path) -> None:
        self.newest, self.previous = paths_of(out)
        # Files that this process has written or read without an error. A file that is there
        # already may be damaged, or the state of another run.
        self._verified: set[Path] = set()

    @property
    def found(self) -> list[Path]:
        """The files that exist, newest first."""
        return [path for path in (self.newest, self.previous) if path.exists()]

    @property
    def kept(self) -> Path | None:
        """The newest file that this process has written or read; None if there is none."""
        return next((path for path in self.found if path in self._verified), None)

    def read(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
        """Return the newest file that is not damaged, and its content.

        Args:
            warn: called with the reason if a newer file is damaged.

        Raises:
            InputError: all files are damaged, or there are none.
        """
        failures = []
        for path in self.found:
            try:
                content = _read(path)
            except InputError as error:
                failures.append(error.what)
                continue
            for what in failures:
                warn(f"{what}; {path.name} takes its place")
            self._verified = {path}
            return path, content
        if not failures:
            raise InputError(f"there is no {self.newest}", "start from the beginning")
        raise InputError(
            ", and ".join(failures),
            f"remove {' and '.join(path.name for path in self.found)}, or leave --resume out to "
            "start from the beginning",
        )

    def write(self, content: Mapping[str, Any]) -> None:
        """Save a state as the newest one; it is read back before it replaces another.

        Args:
            content: plain containers and tensors, on any device.

        Raises:
            InputError: the content holds something else or reads back differently, or the disk is
                full or gone.
        """
        portable = _portable(content)
        with atomic_write(self.newest) as temporary:
            try:
                torch.save({**portable, digest.MANIFEST_KEY: _digest(portable)}, temporary)
            except RuntimeError as error:  # PyTorch raises it if the disk is full
                raise write_error(self.newest, error) from error
            _read(temporary)
            self._make_room()
        self._verified.add(self.newest)

    def remove(self) -> None:
        """Remove both files, once the output is written."""
        self.newest.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Move the newest file to the place of the previous one, if it is verified."""
        if self.newest in self._verified and self.newest.exists():
            os.replace(self.newest, self.previous)
            self._verified = {self.previous}
        elif self.previous not in self._verified:
            self.previous.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of one file.

    Raises:
        InputError: the file is damaged, or is not one of these files.
    """
    try:
        content = dict(torch_file.load(path, read_bytes(path)))
        claimed = content.pop(digest.MANIFEST_KEY, None)
        if claimed is None:
            raise ValueError("it has no digest")
        if claimed != _digest(content):
            raise ValueError("its digest does not match its content")
    except Exception as error:  # a damaged file may make a reader raise anything
        reason = error.what if isinstance(error, InputError) else str(error) or one_line(error)
        raise InputError(
            f"{path} cannot be read: {' '.join(reason.split())[:200]}",
            "remove it, or leave --resume out to start from the beginning",
        ) from error
    return content


def _portable(value: Any) -> Any:
    """Return plain containers of detached tensors on the CPU, each with memory of its own size."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        return tensor.clone() if is_view else tensor
    if isinstance(value, Mapping):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_portable(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _digest(content: Mapping[str, Any]) -> str:
    """Return a digest of nested containers and their tensors.

    Raises:
        InputError: the containers hold something else.
    """
    tensors: dict[str, Tensor] = {}
    try:
        return digest.record_digest({"content": _outline(content, tensors)}, {"tensors": tensors})
    except TypeError as error:
        raise InputError(
            f"the state of a run holds more than plain containers: {error}",
            "this is a defect of the method; please report it",
        ) from None


def _outline(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the containers with their types named; tensors are collected by number instead."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return ["tensor"]
    if isinstance(value, Mapping):
        return ["dict", [[key, _outline(part, tensors)] for key, part in value.items()]]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_outline(part, tensors) for part in value]]
    return value
