"""Data: from what a person typed after ``--data`` to seeded batches of tensors.

The package imports without torch, so that the command line can show names and defaults at once;
the names that need torch load when they are first used.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.data.spec import AUGMENTS, KNOWN, DataSpec, canonical_name
from lpss_cli.errors import InputError, nearest
from lpss_cli.utils.user_code import is_import_path

if TYPE_CHECKING:
    from lpss_cli.data.bundle import Data
    from lpss_cli.data.sources import Augment, DatasetSource, Source, TensorSource
    from lpss_cli.data.splits import epoch_order

__all__ = [
    "AUGMENTS",
    "KNOWN",
    "Augment",
    "Data",
    "DataSpec",
    "DatasetSource",
    "Source",
    "TensorSource",
    "epoch_order",
    "is_import_path",
    "load",
]

_LAZY = {
    "Augment": "sources",
    "Data": "bundle",
    "DatasetSource": "sources",
    "Source": "sources",
    "TensorSource": "sources",
    "epoch_order": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def load(spec: DataSpec) -> Data:
    """Read the data that the specification names.

    Imports and runs code when the name is a ``file.py:factory``: call it with such a name only
    when a person typed it (:func:`is_import_path`), never with one found inside a checkpoint.

    Raises:
        InputError: an unknown name, a missing file, or data that cannot be used; it says which.
    """
    return load_data(spec)


# MERGED: From a data name to the module that reads it.
def load_data(spec: DataSpec) -> Data:
    """Read the data, see :func:`lpss_cli.data.load`.

    A known name wins over a file of that name; ``./mnist`` means the file.
    """
    from lpss_cli.data import datasets, factory, image_folder, npz, tabular

    spec = replace(spec, name=canonical_name(spec.name))
    if spec.name in KNOWN:
        return datasets.load(spec)
    if is_import_path(spec.name):
        return factory.load(spec)
    path = Path(spec.name)
    # os.path.exists: Path.exists fails on names that are too long.
    if not spec.name or not os.path.exists(path):
        raise _missing(spec.name)
    if path.is_dir():
        return image_folder.load(spec)
    if not path.is_file():  # to open a pipe would wait for somebody to write into it
        raise InputError(f"{path} is neither a file nor a folder", "give another --data")
    readers = {".npz": npz.load, ".csv": tabular.load}
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
