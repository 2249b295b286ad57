"""A file's bytes, read once.

Every check and the loading itself work on the same bytes, so a file that changes while it is
examined cannot pass as one thing and load as another.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from lpss_cli.errors import InputError

_BINARY = getattr(os, "O_BINARY", 0)


def opened(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        InputError: there is none, it is a directory, pipe or device, or it cannot be opened.
    """
    try:
        _refuse_all_but_regular(path, os.stat(path).st_mode)
        # Should a pipe take the place of the file now: without O_NONBLOCK, opening one waits.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}", "check the path; `lpss train` makes model.pt"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}", "check the path") from None
    file = open(descriptor, "rb")  # noqa: SIM115  # the caller closes it
    try:
        _refuse_all_but_regular(path, os.fstat(descriptor).st_mode)
    except InputError:
        file.close()
        raise
    return file


def read_whole(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        InputError: see :func:`opened`; or it does not fit into memory, or changed meanwhile.
    """
    with opened(path) as file:
        before = os.fstat(file.fileno())
        try:
            # One byte more than there should be, to see a file that grows.
            content = file.read(before.st_size + 1)
        except (OSError, MemoryError, OverflowError) as error:
            raise unreadable(path, error) from None
        after = os.fstat(file.fileno())
    if len(content) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise changed(path)
    return content


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error of a file that the system, or the memory, does not let be read."""
    reason = getattr(error, "strerror", None) or "it does not fit into memory"
    return InputError(f"{path} cannot be read: {reason}", "check the disk and the memory")


def changed(path: Path) -> InputError:
    """Return the error of a file that changes while it is read."""
    return InputError(
        f"{path} cannot be read: it changed meanwhile", "wait until whatever writes it is done"
    )


def _refuse_all_but_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a file", "give a .pt, .pth or .safetensors file")


# MERGED: Files that people mistake for checkpoints, told by their first bytes.
_OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
}


def is_onnx(data: bytes) -> bool:
    """Whether a file that begins so is an ONNX model.

    It is a protobuf: field 1, the version of the format, then one of the fields 2 to 8.
    """
    first = len(data) > 2 and data[:1] == b"\x08" and 1 <= data[1] <= 64
    return first and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def refuse_others(path: Path, data: bytes) -> None:
    """Refuse a file whose content is known to be no checkpoint.

    Raises:
        InputError: says what it is.
    """
    if is_onnx(data):
        raise InputError(
            f"{path} is an ONNX model, and those cannot be read back",
            "give the .pt or .safetensors file it was made from",
        )
    for start, kind in _OTHER_KINDS.items():
        if data.startswith(start):
            raise InputError(
                f"{path} is {kind}, not a checkpoint",
                "give a torch.save file of a state_dict, or a safetensors file",
            )
