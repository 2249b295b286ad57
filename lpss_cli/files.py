"""Writing files so that a killed run never leaves half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpss_cli.errors import InputError


def check_writable(path: Path, *, force: bool = False, option: str = "--out") -> Path:
    """Find out before any work whether ``path`` can be written.

    Raises:
        InputError: it exists (without ``force``), is no regular file, or its directory is missing
            or read-only.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is not a regular file", f"choose another {option}")
    if not path.parent.is_dir():
        raise InputError(
            f"the directory {path.parent} does not exist", f"make it, or choose {option}"
        )
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent):
            pass
    except OSError as error:
        raise InputError(
            f"the directory {path.parent} cannot be written: {error.strerror}",
            f"choose another {option}",
        ) from None
    if path.exists() and not force:
        raise InputError(
            f"{path} exists already", f"pass --force to replace it, or another {option}"
        )
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path``; move it into place when the block succeeds.

    The content is flushed to disk before the move, so after a crash there is either the old file
    or the whole new one; the temporary is gone either way.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
