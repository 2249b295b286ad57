"""The state of an unfinished run beside its output, in two generations.

``OUT.partial`` is the newest, ``OUT.partial.old`` the one before. Each is a ``torch.save`` file of
plain containers and tensors with a digest of everything in it. A file is read back before it takes
the place of another, and one that is damaged later falls back to the other.
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
    """``model.pt`` -> ``model.pt.partial`` and ``model.pt.partial.old``."""
    return Path(f"{out}.partial"), Path(f"{out}.partial.old")


class TrainingStateFiles:
    """The saved states of one run.

    Args:
        out: the run's output.
    """

    def __init__(self, out: Path) -> None:
        self.newest, self.previous = paths_of(out)
        # Of this run and whole. Another run's state is no generation of this one.
        self._sound: set[Path] = set()

    @property
    def found(self) -> list[Path]:
        """Those that are there, newest first."""
        return [path for path in (self.newest, self.previous) if path.exists()]

    @property
    def kept(self) -> Path | None:
        """The newest that this process has written or read, None if there is none."""
        return next((path for path in self.found if path in self._sound), None)

    def read(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
        """Return the newest that is whole, and where it was.

        Args:
            warn: told why a newer one was passed over.

        Raises:
            InputError: none is whole, or there is none.
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
            self._sound = {path}
            return path, content
        if not failures:
            raise InputError(f"there is no {self.newest}", "start from the beginning")
        raise InputError(
            ", and ".join(failures),
            f"remove {' and '.join(path.name for path in self.found)}, or leave --resume out to "
            "start from the beginning",
        )

    def write(self, content: Mapping[str, Any]) -> None:
        """Save a state as the newest generation, read back before it becomes that.

        Args:
            content: plain containers and tensors, on any device.

        Raises:
            InputError: it holds something else, reads back differently, or the disk is full or
                gone.
        """
        portable = _portable(content)
        with atomic_write(self.newest) as temporary:
            try:
                torch.save({**portable, digest.MANIFEST_KEY: _digest(portable)}, temporary)
            except RuntimeError as error:  # how PyTorch's writer says that the disk is full
                raise write_error(self.newest, error) from error
            _read(temporary)
            self._make_room()
        self._sound.add(self.newest)

    def remove(self) -> None:
        """Remove both: the output is there."""
        self.newest.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Move the newest to the previous place if it is worth keeping."""
        if self.newest in self._sound and self.newest.exists():
            os.replace(self.newest, self.previous)
            self._sound = {self.previous}
        elif self.previous not in self._sound:
            self.previous.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of one file.

    Raises:
        InputError: it is damaged, or no such file.
    """
    try:
        content = dict(torch_file.load(path, read_bytes(path)))
        claimed = content.pop(digest.MANIFEST_KEY, None)
        if claimed is None:
            raise ValueError("it holds no digest")
        if claimed != _digest(content):
            raise ValueError("its digest does not fit its content")
    except Exception as error:  # whatever a broken file makes a reader raise
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
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, Mapping):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_portable(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _digest(content: Mapping[str, Any]) -> str:
    """Return a digest of nested containers and their tensors.

    Raises:
        InputError: they hold something else.
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
    """Return the containers with their kinds named, tensors left out: they are numbered."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return ["tensor"]
    if isinstance(value, Mapping):
        return ["dict", [[key, _outline(part, tensors)] for key, part in value.items()]]
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_outline(part, tensors) for part in value]]
    return value
