"""The newest artifact of a folder, found without reading its tensors."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from lpss_cli.errors import InputError


def newest_artifact(directory: Path) -> Path:
    """Return the lpss artifact (``*.pt``) in a directory that was written last.

    Raises:
        InputError: the directory holds none.
    """
    artifacts = [p for p in directory.glob("*.pt") if p.is_file() and is_artifact(p)]
    if not artifacts:
        raise InputError(
            f"there is no lpss artifact in {directory}", "name a file, or run `lpss train` first"
        )
    return max(artifacts, key=lambda p: (p.stat().st_mtime_ns, p.name))


def is_artifact(path: Path) -> bool:
    """Return whether a file is an lpss artifact; only the first bytes of its pickle are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as pickled:
                return b"X\x04\x00\x00\x00lpss" in pickled.read(64)  # the key "lpss", pickled
    # An archive can be broken in many ways, and none of them makes it an artifact.
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError,
            StopIteration):  # fmt: skip
        return False
