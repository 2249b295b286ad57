"""Writing files so that a killed run never leaves half of one, and two runs never write the same.

Every writer of an output holds a lock beside it, ``.NAME.lock``, which the system releases when the
process ends, however it ends. So whoever holds the lock knows that temporary files of that output,
``.NAME.<random>.tmp``, are those of runs that were killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpss_cli.errors import InputError

# Temporary files that this process is writing.
_live: set[Path] = set()


def check_writable(path: Path, *, force: bool = False, option: str = "--out") -> Path:
    """Find out before any work whether ``path`` can be written.

    Raises:
        InputError: it exists (without ``force``), is no regular file, or its directory is missing
            or read-only.
    """
    _refuse_all_but_regular(path, option)
    if not path.parent.is_dir():
        raise InputError(
            f"the directory {path.parent} does not exist", f"make it, or choose {option}"
        )
    try:
        _temporary_of(path).unlink()
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


def check_space(path: Path, needed: int, option: str = "--out") -> None:
    """Find out before any work whether ``needed`` bytes fit beside ``path``.

    An output that is replaced stays until the new one is whole, so its bytes do not count.

    Raises:
        InputError: they do not.
    """
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:  # some systems do not say
        return
    if free < needed:
        raise InputError(
            f"{path} needs about {needed:,} bytes, and {free:,} are free in {path.parent}",
            f"make room, or choose another {option}",
        )


@contextmanager
def reserve_output(
    path: Path, *companions: Path, force: bool = False, option: str = "--out"
) -> Iterator[None]:
    """Check that an output can be written, and hold it and its companions for this process.

    Args:
        path: the file that the block will write.
        companions: files beside it that it may replace without asking.
        force: the file may exist.
        option: names the file on the command line, for messages.

    Raises:
        InputError: see :func:`check_writable` and :func:`claimed`.
    """
    check_writable(path, force=force, option=option)
    with contextlib.ExitStack() as held:
        for each in (path, *companions):
            _refuse_all_but_regular(each, option)
            held.enter_context(output_lock(each, option))
        yield


@contextmanager
def output_lock(path: Path, option: str = "--out") -> Iterator[None]:
    """Hold an output for this process alone, and clear away what killed runs left of it.

    A block inside a block of the same process is free to enter.

    Raises:
        InputError: another process is writing it.
    """
    from filelock import FileLock, Timeout

    name = path.with_name(f".{path.name}.lock").absolute()
    lock = FileLock(name, timeout=0, is_singleton=True, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another run is writing {path}", f"wait until it is done, or choose another {option}"
        ) from None
    except OSError as error:
        raise InputError(
            f"{name.name} cannot be locked: {error.strerror}", f"choose another {option}"
        ) from None
    try:
        _sweep(path)
        yield
    finally:
        if lock.lock_counter == 1:
            # Before the release: who waits for the lock of a removed file asks for a new one.
            # On Windows an open file cannot be removed, and the empty file stays.
            with contextlib.suppress(OSError):
                name.unlink()
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path``; move it into place when the block succeeds.

    The content is flushed to disk before the move, so after a crash there is either the old file
    or the whole new one; the temporary is gone either way.

    Raises:
        InputError: ``path`` is a link, pipe or device, another process is writing it, or the block
            or the system cannot write.
    """
    _refuse_all_but_regular(path, "output")
    with output_lock(path, "output"):
        try:
            with _temporary_for(path) as temporary:
                yield temporary
        except OSError as error:
            raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> InputError:
    """Return the error of a file that a full or broken disk did not take."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"cannot write {path}: {reason}", "check space and permissions")


@contextmanager
def _temporary_for(path: Path) -> Iterator[Path]:
    """Give a temporary file, and move it into place if the block succeeds."""
    temporary = _temporary_of(path)
    _live.add(temporary.absolute())
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # a library may have put a private file in its place
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _live.discard(temporary.absolute())


def _refuse_all_but_regular(path: Path, option: str) -> None:
    if path.is_symlink() or (os.path.exists(path) and not path.is_file()):
        raise InputError(f"{path} is not a regular file", f"choose another {option}")


def _temporary_of(path: Path) -> Path:
    """Make an empty file beside ``path``; its mode follows the umask, as that of any new file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def _sweep(path: Path) -> None:
    """Remove the temporary files of an output that this process holds the lock of."""
    ours = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError):
        for found in path.parent.iterdir():
            if ours.fullmatch(found.name) and found.absolute() not in _live:
                found.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems keep no directories to flush
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
