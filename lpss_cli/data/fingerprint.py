"""Which data a run used: a hash that changes when the data does."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt


def of_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256 (hex) over type, shape and bytes of raw arrays, train before test.

    Raw values, before any preprocessing: rounding differs between machines, the data does not.
    """
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def of_texts(texts: Iterable[str]) -> str:
    """SHA-256 (hex) over texts, each with its end marked."""
    digest = sha256()
    for text in texts:
        digest.update(text.encode() + b"\x1e")
    return digest.hexdigest()


def of_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 (hex) over path relative to root and size in bytes, sorted: no file is read."""
    return of_texts(
        sorted(f"{f.relative_to(root).as_posix()}\x1f{f.stat().st_size}" for f in files)
    )
