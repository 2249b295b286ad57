"""Networks made by a function of the user's: ``file.py:factory`` and ``pkg.mod:factory``.

This runs code. Only specs typed by the person may come here (see ``is_import_path``).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lpss_cli.errors import InputError, LpssError, one_line


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Call the factory and check that it returns a network.

    The factory is called with those of ``input_shape``, ``outputs``, ``num_classes`` that its
    signature names, by keyword, and with nothing else.

    Raises:
        InputError: no such file, module or function; the factory raised; not an ``nn.Module``.
    """
    head, _, attribute = spec.rpartition(":")
    known = {"input_shape": input_shape, "outputs": outputs, "num_classes": outputs}
    # On the path for the call too: a factory may import its helpers when it is called.
    with _on_path(_folder(head)):
        factory = _factory(_module(head), attribute, spec)
        try:
            network = factory(**{k: v for k, v in known.items() if k in _parameters(factory)})
        except LpssError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{spec} raised {one_line(error)}",
                "call it alone in Python to see where; it may take input_shape and outputs",
            ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{spec} returned a {type(network).__name__}, not a torch.nn.Module",
            "let the function return the network",
        )
    return network


def _is_file(head: str) -> bool:
    return head.endswith(".py")


def _folder(head: str) -> Path:
    """Name the folder to import from: the file's own, or the current one."""
    return Path(head).resolve().parent if _is_file(head) else Path.cwd()


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
    """Import a file by its path, or a module by its name."""
    if _is_file(head) and not Path(head).is_file():
        raise InputError(f"no such file: {head}", "check the path before the colon of --arch")
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


def _factory(module: ModuleType, attribute: str, spec: str) -> Callable[..., Any]:
    found = getattr(module, attribute, None) if attribute else None
    if found is None:
        raise InputError(
            f"{spec.rpartition(':')[0]} has no function {attribute!r}",
            "write file.py:FUNCTION with a function that returns the network",
        )
    # A module instance is callable too, but calling it runs its forward.
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"{spec} is a {type(found).__name__}, not a function",
            "name a function that returns the network",
        )
    return found  # type: ignore[no-any-return]


def _parameters(factory: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # written in C: nothing is known of its arguments
        return set()
