"""Import paths: ``file.py:function``, typed by a person on the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lpss_cli.errors import InputError, nearest, one_line


def is_import_path(name: str) -> bool:
    """Whether loading this name would run code: ``some/file.py:function``.

    A checkpoint may come from anyone, so an import path found inside one is refused.
    """
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()


@contextmanager
def beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it could when run as a script."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def import_function(name: str) -> Callable[..., Any]:
    """Import the function that ``file.py:function`` names. Runs the file.

    Raises:
        InputError: no such file, the file fails, or it has no such function.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {file}", "give the path of a Python file: file.py:name")
    module = _execute(path)
    found = getattr(module, attribute, None)
    if not callable(found):
        functions = tuple(k for k, v in vars(module).items() if callable(v) and k[0] != "_")
        raise InputError(f"{file} has no function {attribute!r}", nearest(attribute, functions))
    return found  # type: ignore[no-any-return]  # any callable will do, its caller checks


def _execute(path: Path) -> ModuleType:
    """Run the file as a module of its own name space."""
    # A prefix keeps `json.py` or `torch.py` beside the data from hiding the real module.
    spec = importlib.util.spec_from_file_location(f"lpss_factory_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported", "give a Python source file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickle look their module up by name.
    sys.modules[spec.name] = module
    try:
        with beside(path):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(spec.name, None)
        raise InputError(
            f"{path} fails on import: {one_line(error)}", f"make `python {path}` run first"
        ) from error
    return module
