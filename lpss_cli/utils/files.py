"""Output files: a killed run never leaves half of one, and two runs never write the same one.

Every writer of an output holds a lock beside it, ``.NAME.lock``, which the system releases when the
process ends, however it ends. Whoever holds the lock therefore knows that temporary files of that
output, ``.NAME.<random>.tmp``, were left by runs that were killed.
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

# Temporary files that this process is writing at the moment.
_live: set[Path] = set()


def check_writable(path: Path, *, force: bool = False, option: str = "--out") -> Path:
    """Check before any work that ``path`` can be written, and return it.

    Raises:
        InputError: it exists (without ``force``), is not a regular file, or its directory is
            missing or read-only.
    """
    _check_regular(path, option)
    if not path.parent.is_dir():
        raise InputError(
            f"the directory {path.parent} does not exist", f"create it, or choose another {option}"
        )
    try:
        _create_temporary(path).unlink()
    except OSError as error:
        raise InputError(
            f"the directory {path.parent} cannot be written: {error.strerror}",
            f"choose another {option}",
        ) from None
    if path.exists() and not force:
        raise InputError(
            f"{path} already exists", f"pass --force to replace it, or another {option}"
        )
    return path


def check_space(path: Path, needed: int, option: str = "--out") -> None:
    """Check before any work that ``needed`` bytes fit beside ``path``.

    An output that is replaced stays until the new one is complete, so its bytes do not count as
    free.

    Raises:
        InputError: they do not fit.
    """
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:  # some systems do not tell
        return
    if free < needed:
        raise InputError(
            f"{path} needs about {needed:,} bytes, and {free:,} are free in {path.parent}",
            f"free some space, or choose another {option}",
        )


@contextmanager
def reserve_output(
    path: Path, *companions: Path, force: bool = False, option: str = "--out"
) -> Iterator[None]:
    """Check that an output can be written, and lock it and its companions for this process.

    Args:
        path: the file that the block will write.
        companions: files beside it that the block may replace without asking.
        force: whether the file may exist.
        option: the command-line option that names the file, for messages.

    Raises:
        InputError: see :func:`check_writable` and :func:`output_lock`.
    """
    check_writable(path, force=force, option=option)
    with contextlib.ExitStack() as locks:
        for file in (path, *companions):
            _check_regular(file, option)
            locks.enter_context(output_lock(file, option))
        yield


@contextmanager
def output_lock(path: Path, option: str = "--out") -> Iterator[None]:
    """Lock an output for this process, and remove what killed runs left of it.

    The same process may enter a block inside another.

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
        _remove_leftovers(path)
        yield
    finally:
        if lock.lock_counter == 1:
            # Before the release: whoever waits for the lock of a removed file asks for a new one.
            # On Windows an open file cannot be removed, and the empty file stays.
            with contextlib.suppress(OSError):
                name.unlink()
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, and move it into place if the block succeeds.

    The content is flushed to disk before the move. After a crash there is either the old file or
    the complete new one, and the temporary file is gone either way.

    Raises:
        InputError: ``path`` is a link, pipe or device, another process is writing it, or the block
            or the system cannot write.
    """
    _check_regular(path, "output")
    with output_lock(path, "output"):
        try:
            with _replacement(path) as temporary:
                yield temporary
        except OSError as error:
            raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> InputError:
    """Return the error for a file that could not be written, as on a full or broken disk."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"cannot write {path}: {reason}", "check space and permissions")


@contextmanager
def _replacement(path: Path) -> Iterator[Path]:
    """Yield a temporary file, and move it into place if the block succeeds."""
    temporary = _create_temporary(path)
    _live.add(temporary.absolute())
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # a library may have replaced it with a private file
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _live.discard(temporary.absolute())


def _check_regular(path: Path, option: str) -> None:
    if path.is_symlink() or (os.path.exists(path) and not path.is_file()):
        raise InputError(f"{path} is not a regular file", f"choose another {option}")


def _create_temporary(path: Path) -> Path:
    """Create an empty file beside ``path`` with the umask's permissions, like any new file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of an output whose lock this process holds."""
    temporary = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError):
        for file in path.parent.iterdir():
            if temporary.fullmatch(file.name) and file.absolute() not in _live:
                file.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable, if the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot flush directories
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
