"""Users' own functions, named as ``file.py:function`` or ``package.module:function``.

Calling them runs code. Only names that a person typed may be passed here, never one that was found
in a file.
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


def is_import_path(name: str) -> bool:
    """Whether loading data of this name would run code: ``some/file.py:function``.

    A checkpoint may come from anyone, so an import path found inside one is refused.
    """
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()


def call_function(spec: str, known: Mapping[str, Any] | None = None) -> Any:
    """Import a function, and call it with those of the known values that its signature names.

    Args:
        spec: ``some/file.py:function`` or ``package.module:function``.
        known: values by argument name, passed by keyword.

    Raises:
        InputError: no such file, module or function, or it raised an exception; with the
            exception's class and message.
    """
    head, _, attribute = spec.rpartition(":")
    # On the path during the call too: a function may import its helpers when it is called.
    # What it prints goes to stderr: stdout belongs to the results.
    folder = Path(head).resolve().parent if _is_file(head) else Path.cwd()
    with _on_path(folder), redirect_stdout(sys.stderr):
        function = _find_function(_import(head), head, attribute)
        names = _parameter_names(function)
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
    """Put ``folder`` first in ``sys.path`` inside the block."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _import(head: str) -> ModuleType:
    """Import a module by the path of its file or by its dotted name."""
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
    # A unique name, so that a user's file called json.py or torch.py shadows nothing.
    name = f"_lpss_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # impossible, since the name ends in .py
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_function(module: ModuleType, head: str, attribute: str) -> Callable[..., Any]:
    value = getattr(module, attribute, None) if attribute else None
    if inspect.isroutine(value) or inspect.isclass(value):
        return value
    if value is not None:
        raise InputError(
            f"{head}:{attribute} is a {type(value).__name__}, not a function",
            "name a function that returns it",
        )
    functions = tuple(k for k, v in vars(module).items() if inspect.isfunction(v) and k[0] != "_")
    raise InputError(f"{head} has no function {attribute!r}", nearest(attribute, functions))


def _parameter_names(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C, without a signature
        return set()
