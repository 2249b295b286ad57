"""Data: from what was typed after ``--data`` to seeded batches of tensors.

The package imports without torch, so that the command line can show names and defaults at once.
Names that need torch are loaded when they are first used.
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

    A known name takes precedence over a file of that name; ``./mnist`` means the file.

    A name ``file.py:factory`` imports and runs code. Pass such a name only if a person typed it
    (:func:`is_import_path`), never if it was found inside a checkpoint.

    Raises:
        InputError: an unknown name, a missing file, or data that cannot be used; it says which.
    """
    spec = replace(spec, name=canonical_name(spec.name))
    # Each reader is imported alone: most commands need one, and the others cost time.
    if spec.name in KNOWN:
        from lpss_cli.data import datasets

        return datasets.load(spec)
    if is_import_path(spec.name):
        from lpss_cli.data import factory

        return factory.load(spec)
    path = _existing_path(spec.name)
    if path.is_dir():
        from lpss_cli.data import image_folder

        return image_folder.load(spec)
    if path.suffix.lower() == ".npz":
        from lpss_cli.data import npz

        return npz.load(spec)
    if path.suffix.lower() == ".csv":
        from lpss_cli.data import tabular

        return tabular.load(spec)
    if path.suffix == ".py":
        raise InputError(f"{path} names no function", f"write {path}:factory")
    raise InputError(
        f"{path} is not a kind of data that lpss reads",
        "give a folder of images, table.csv, arrays.npz or file.py:factory",
    )


def _existing_path(name: str) -> Path:
    """Return the path of a file or folder.

    Raises:
        InputError: there is none, or it is a pipe or device.
    """
    path = Path(name)
    # os.path.exists: Path.exists fails on names that are too long.
    if not name or not os.path.exists(path):
        raise _missing(name)
    if not path.is_dir() and not path.is_file():  # opening a pipe would wait for its writer
        raise InputError(f"{path} is neither a file nor a folder", "give another --data")
    return path


def _missing(name: str) -> InputError:
    """Return the error for a name that is neither known nor a file."""
    path = Path(name)
    if "/" in name or "\\" in name or path.suffix:
        return InputError(f"there is no file or folder {name}", "check the path after --data")
    return InputError(
        f"no data set called {name!r}",
        f"{nearest(name.lower(), KNOWN)}, or a folder, table.csv, arrays.npz, file.py:factory",
    )
