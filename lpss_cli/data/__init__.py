"""Data: from what a person typed after ``--data`` to seeded batches of tensors.

The package imports without torch, so that the command line can show names and defaults at once;
the names that need torch load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lpss_cli.data.spec import AUGMENTS, KNOWN, DataSpec
from lpss_cli.utils.user_code import is_import_path

if TYPE_CHECKING:
    from lpss_cli.data.bundle import Data
    from lpss_cli.data.order import epoch_order
    from lpss_cli.data.sources import Augment, DatasetSource, Source, TensorSource

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
    "epoch_order": "order",
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
    from lpss_cli.data.dispatch import load as dispatch

    return dispatch(spec)
