"""Paths of the command line: an empty one is refused.

``Path("")`` is the current folder, and who types ``--out-dir "$DIR"`` with an unset variable did
not mean that.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

from typer.models import ArgumentInfo

from lpss_cli.errors import LpssError

# How a parameter takes one or several paths.
_KINDS = (Path, Path | None, list[Path], list[Path] | None)


class EmptyPathError(LpssError):
    """A path without a character; no ``ValueError``, for the parser would reword that."""

    exit_code = 2


def not_empty(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter of a command that refuses empty paths; any other one as it is."""
    kind, *declared = get_args(parameter.annotation) or (None,)
    if kind not in _KINDS:
        return parameter
    (info,) = map(copy.copy, declared)
    name = "--" + parameter.name.replace("_", "-")
    if isinstance(info, ArgumentInfo):
        name = info.metavar or parameter.name.upper()
    else:
        info.metavar = info.metavar or "<path>"
    info.parser = _parser(name)
    return parameter.replace(annotation=Annotated[kind, info])


def _parser(name: str) -> Callable[[str | Path], Path]:
    def path(text: str | Path) -> Path:
        """Read one path; the help says by this function's name what is to be typed."""
        if text == "":
            raise EmptyPathError(f"{name} is empty", "give a path; . is the current folder")
        return Path(text)

    return path
