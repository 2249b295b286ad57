"""Functions of the user's own: ``file.py:function`` and ``pkg.mod:function``.

This runs code. Only names that a person typed may come here, never one found in a file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from lpss_cli.errors import InputError, LpssError, nearest, one_line


def call_function(spec: str, known: Mapping[str, Any] | None = None) -> Any:
    """Import the function and call it with those of the known values its signature names.

    Args:
        spec: ``some/file.py:function`` or ``package.module:function``.
        known: values by argument name, passed by keyword.

    Raises:
        InputError: no such file, module or function, or it raised; with its class and message.
    """
    head, _, attribute = spec.rpartition(":")
    # On the path for the call too: a function may import its helpers when it is called.
    # What it prints is no result of ours.
    folder = Path(head).resolve().parent if _is_file(head) else Path.cwd()
    with _on_path(folder), redirect_stdout(sys.stderr):
        function = _find(_module(head), head, attribute)
        names = _parameters(function)
        try:
            return function(**{k: v for k, v in (known or {}).items() if k in names})
        except LpssError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{spec} raised {one_line(error)}",
                f"call it alone in Python; it may take {', '.join(known or ['no arguments'])}",
            ) from error


def _is_file(head: str) -> bool:
    return head.endswith(".py")


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """``sys.path`` begins with ``folder`` inside the block and is as before after it."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _module(head: str) -> ModuleType:
    if _is_file(head) and not Path(head).is_file():
        raise InputError(f"there is no file {head}", "give the path of a Python file: file.py:name")
    try:
        return _run_file(Path(head).resolve()) if _is_file(head) else importlib.import_module(head)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"importing {head} failed with {one_line(error)}",
            "it must import in Python by itself, without running anything",
        ) from error


def _run_file(path: Path) -> ModuleType:
    # A name of its own, so that a user's file called json.py or torch.py shadows nothing.
    name = f"_lpss_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # cannot be: the name ends in .py
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find(module: ModuleType, head: str, attribute: str) -> Callable[..., Any]:
    found = getattr(module, attribute, None) if attribute else None
    if inspect.isroutine(found) or inspect.isclass(found):
        return found
    if found is not None:
        raise InputError(
            f"{head}:{attribute} is a {type(found).__name__}, not a function",
            "name a function that makes it",
        )
    functions = tuple(k for k, v in vars(module).items() if inspect.isfunction(v) and k[0] != "_")
    raise InputError(f"{head} has no function {attribute!r}", nearest(attribute, functions))


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C: nothing is known of its arguments
        return set()


# MERGED: Recognising data that is code.
def is_import_path(name: str) -> bool:
    """Whether loading this name would run code: ``some/file.py:function``.

    A checkpoint may come from anyone, so an import path found inside one is refused.
    """
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()
