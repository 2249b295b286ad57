"""Reading a file's bytes once, and telling by its first bytes what it is.

Every check and the loading itself work on the same bytes, so a file that changes while it is being
examined cannot pass as one thing and load as another.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from lpss_cli.checkpoints.packed.coding import MAGIC as PACK_MAGIC
from lpss_cli.errors import InputError

#: First bytes of a zip archive, which is what ``torch.save`` writes.
ZIP_MAGIC = b"PK\x03\x04"
# First bytes of formats that people mistake for checkpoints.
_OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
}
# Windows translates line ends in files that are opened without it.
_BINARY = getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        InputError: the file does not exist, is a directory, pipe or device, or cannot be opened.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        # A pipe may take the file's place now, and opening one without O_NONBLOCK would wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}", "check the path; `lpss train` makes model.pt"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}", "check the path") from None
    file = open(descriptor, "rb")  # noqa: SIM115  # the caller closes it
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except InputError:
        file.close()
        raise
    return file


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        InputError: see :func:`open_regular`; or the file does not fit into memory, or changes
            while it is being read.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        try:
            # One byte more than there should be, to notice a file that grows.
            content = file.read(before.st_size + 1)
        except (OSError, MemoryError, OverflowError) as error:
            raise unreadable_error(path, error) from None
        after = os.fstat(file.fileno())
    if len(content) != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
        raise changed_error(path)
    return content


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (nine or more) is a safetensors file.

    The format has no magic number: eight bytes for the header's length, then the header's ``{``.
    """
    return head[8:9] == b"{" and head[:4] != ZIP_MAGIC and not head.startswith(PACK_MAGIC)


def is_onnx(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (three or more) is an ONNX model.

    ONNX is a protobuf: field 1, the version of the format, then one of the fields 2 to 8.
    """
    has_version = len(head) > 2 and head[:1] == b"\x08" and 1 <= head[1] <= 64
    return has_version and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def refuse_other_formats(path: Path, data: bytes) -> None:
    """Refuse a file whose first bytes show that it is not a checkpoint.

    Raises:
        InputError: it is of another known format; the message says which.
    """
    if is_onnx(data):
        raise InputError(
            f"{path} is an ONNX model, and those cannot be read back",
            "give the .pt or .safetensors file it was made from",
        )
    for magic, kind in _OTHER_FORMATS.items():
        if data.startswith(magic):
            raise InputError(
                f"{path} is {kind}, not a checkpoint",
                "give a torch.save file of a state_dict, or a safetensors file",
            )


def unreadable_error(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the system or the memory does not allow to be read."""
    reason = getattr(error, "strerror", None) or "it does not fit into memory"
    return InputError(f"{path} cannot be read: {reason}", "check the disk and the memory")


def changed_error(path: Path) -> InputError:
    """Return the error for a file that changes while it is being read."""
    return InputError(
        f"{path} cannot be read: it changed while it was being read",
        "wait until the program that writes it is done",
    )


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a file", "give a .pt, .pth or .safetensors file")
