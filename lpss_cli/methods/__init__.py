"""One file per method. Importing this package imports all of them, and so registers the methods."""

import importlib
import pkgutil


def load_all() -> None:
    """Import every module of this package; each of them registers its method."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


load_all()
