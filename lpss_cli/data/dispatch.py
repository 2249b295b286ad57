"""From a data name to the module that reads it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from lpss_cli.data.bundle import Data
from lpss_cli.data.spec import KNOWN, DataSpec, canonical_name
from lpss_cli.errors import InputError, nearest
from lpss_cli.utils.user_code import is_import_path


def load(spec: DataSpec) -> Data:
    """Read the data, see :func:`lpss_cli.data.load`.

    A known name wins over a file of that name; ``./mnist`` means the file.
    """
    from lpss_cli.data import arrays, factory, folder, images, table

    spec = replace(spec, name=canonical_name(spec.name))
    if spec.name in KNOWN:
        return images.load(spec)
    if is_import_path(spec.name):
        return factory.load(spec)
    path = Path(spec.name)
    # os.path.exists: Path.exists fails on names that are too long.
    if not spec.name or not os.path.exists(path):
        raise _missing(spec.name)
    if path.is_dir():
        return folder.load(spec)
    if not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise InputError(f"{path} is neither a file nor a folder", "give another --data")
    readers = {".npz": arrays.load, ".csv": table.load}
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()](spec)
    if path.suffix == ".py":
        raise InputError(f"{path} names no function", f"write {path}:factory")
    raise InputError(
        f"{path} is no kind of data that lpss reads",
        "give a folder of images, table.csv, arrays.npz or file.py:factory",
    )


def _missing(name: str) -> InputError:
    """Word the error for a name that is neither known nor a file."""
    path = Path(name)
    if "/" in name or "\\" in name or path.suffix:
        return InputError(f"there is no file or folder {name}", "check the path after --data")
    return InputError(
        f"no data set called {name!r}",
        f"{nearest(name.lower(), KNOWN)}, or a folder, table.csv, arrays.npz, file.py:factory",
    )
