"""Options on the command line: from declarations to flags, their help and their completion."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import ArgumentInfo

from lpss_cli.errors import LpssError
from lpss_cli.training import method as methods
from lpss_cli.utils.options import (
    OUTPUT_PANEL,
    Option,
    option,
)

#: A checkpoint that need not be named.
File = Annotated[
    Path | None, typer.Argument(help="Checkpoint (default: the newest artifact here).")
]
# Types of parameters that are one or several paths.
_PATHS = (Path, Path | None, list[Path], list[Path] | None)


@dataclass(frozen=True)
class PrintingOptions:
    """What a command prints; every command has these options.

    Attributes:
        as_json: Print one JSON document on stdout and nothing else.
        quiet: Print no notes and no progress.
        debug: Show tracebacks.
    """

    as_json: bool = option(
        False, "print one JSON document on stdout", group=OUTPUT_PANEL, key="json", recipe=False
    )
    quiet: bool = option(
        False, "print no notes and no progress", group=OUTPUT_PANEL, short="-q", recipe=False
    )
    debug: bool = option(
        False, "show tracebacks of errors", group=OUTPUT_PANEL, recipe=False, advanced=True
    )


class EmptyPathError(LpssError):
    """A path without a character. It is not a ``ValueError``, which the parser would reword."""

    exit_code = 2


def parameter(item: Option, help: str) -> inspect.Parameter:
    """Return the parameter of a command from which the parser makes the flags of an option.

    Its value is None when the option is not typed.
    """
    known = (lambda: item.choices) if item.choices else item.suggestions
    complete = several_of if item.several else one_of
    flags = item.flags
    if item.kind is bool and item.default:
        flags = (f"{item.flag}/--no-{item.flag.removeprefix('--')}", *flags[1:])
    info = typer.Option(
        *flags,
        help=help,
        rich_help_panel=item.group or None,
        show_default=False,
        autocompletion=known and complete(known),
        envvar=item.environment or None,
    )
    kind = _kind(item) | None
    made = inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, info],
    )
    return without_empty_paths(made, item.flag)


def _kind(item: Option) -> Any:
    """Return the type of what is typed for an option."""
    if item.is_path:
        return Path
    if item.parse is not None:
        return str
    return list[str] if get_args(item.kind) else item.kind


def help_of(item: Option, command: str = "") -> str:
    """Return the help of an option: what it is, and its default, as a command has it."""
    return _sentence(item.text, [item.default_for(command)])


def help_of_methods(item: Option) -> str:
    """Return the help of an option of methods: what it is, and its default for every method."""
    owners = {
        name: next(found for found in methods.options_of(cls) if found.key == item.key)
        for name, cls in methods.registry().items()
        if any(found.key == item.key for found in methods.options_of(cls))
    }
    choices = dict.fromkeys(choice for found in owners.values() for choice in found.choices)
    text = replace(item, choices=tuple(choices)).text
    by_default: dict[str, list[str]] = {}
    for name, found in owners.items():
        by_default.setdefault(found.default_for(), []).append(name)
    return _sentence(text, _defaults(by_default, everywhere=len(owners) == len(methods.registry())))


def _defaults(by_default: Mapping[str, list[str]], everywhere: bool) -> Iterator[str]:
    """Yield every default with the methods that have it; the most common one first."""
    if set(by_default) == {""}:
        yield f"for {', '.join(by_default[''])}"
        return
    ordered = sorted(by_default.items(), key=lambda item: -len(item[1]))
    for number, (value, names) in enumerate(ordered):
        whose = "" if everywhere and not number else f" for {', '.join(names)}"
        yield f"{value or 'auto'}{whose}"


def _sentence(text: str, defaults: Any) -> str:
    """Return help in round brackets: square ones would be markup to the printer of the help."""
    told = "; ".join(filter(None, defaults))
    text = f"{text[:1].upper()}{text[1:]}"
    if not told:
        return f"{text}."
    return f"{text} ({told})." if told.startswith("for ") else f"{text} (default: {told})."


def without_empty_paths(parameter: inspect.Parameter, name: str = "") -> inspect.Parameter:
    """Return a parameter of a command that refuses empty paths; any other one as it is.

    ``Path("")`` is the current folder, and whoever types ``--out-dir "$DIR"`` with an unset
    variable did not mean that.
    """
    kind, *declared = get_args(parameter.annotation) or (None,)
    if kind not in _PATHS:
        return parameter
    (info,) = map(copy.copy, declared)
    if isinstance(info, ArgumentInfo):
        name = info.metavar or parameter.name.upper()
    else:
        info.metavar = info.metavar or "<path>"
    info.parser = _path_parser(name)
    return parameter.replace(annotation=Annotated[kind, info])


def _path_parser(name: str) -> Callable[[str | Path], Path]:
    def path(text: str | Path) -> Path:
        """Read one path; the help takes the name of this function for its type."""
        if text == "":
            raise EmptyPathError(f"{name} is empty", "give a path; . is the current folder")
        return Path(text)

    return path


# Completers. They import no PyTorch, so that a shell completes at once; where they return nothing,
# the shell completes the names of files, as it does for any program.
Completer = Callable[[str], list[str]]


def one_of(values: Callable[[], Sequence[str]]) -> Completer:
    """Complete one of some values."""

    def complete(incomplete: str) -> list[str]:
        """Return the values that begin with what was typed."""
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def several_of(values: Callable[[], Sequence[str]]) -> Completer:
    """Complete the last of several values, separated by commas, none of them twice."""

    def complete(incomplete: str) -> list[str]:
        """Return what was typed with the values that may come next."""
        before, comma, last = incomplete.rpartition(",")
        used = before.split(",")
        left = [value for value in values() if value not in used]
        return [f"{before}{comma}{value}" for value in left if value.startswith(last)]

    return complete
