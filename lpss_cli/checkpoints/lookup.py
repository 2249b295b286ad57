"""Artefacts in a directory, found without reading them whole."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from lpss_cli.errors import InputError


def is_artifact(path: Path) -> bool:
    """Whether a file is an lpss artefact, by a look at its first bytes of pickled structure."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as pickled:
                return b"X\x04\x00\x00\x00lpss" in pickled.read(64)  # the text, pickled
    # An archive can be broken in many ways, and none of them makes it an artefact.
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError,
            StopIteration):  # fmt: skip
        return False


def newest_artifact(directory: Path) -> Path:
    """Return the lpss artefact (``*.pt``) that was written last in a directory.

    Raises:
        InputError: there is none.
    """
    found = [p for p in directory.glob("*.pt") if p.is_file() and is_artifact(p)]
    if not found:
        raise InputError(
            f"there is no lpss artefact in {directory}", "name a file, or run `lpss train` first"
        )
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name))
