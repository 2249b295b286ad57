"""From groups of options and the methods' configs to the parameters of a command."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args

from typer.models import ArgumentInfo

from lpss_cli.cli.completion import among
from lpss_cli.cli.options import Group, option
from lpss_cli.errors import LpssError
from lpss_cli.training import method as methods

# MERGED: Paths of the command line: an empty one is refused.
# MERGED: ``Path("")`` is the current folder, and who types ``--out-dir "$DIR"`` with an unset
# MERGED: variable did
# MERGED: not mean that.
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


def with_options(
    *groups: Group,
    of_methods: bool = False,
    method_fields: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of some groups, and every flag that a registered method declares.

    Args:
        groups: name → (annotated type, default); the command gets them as one dict ``values``.
        of_methods: add the methods' flags; the command gets those that were given as a dict
            ``chosen``.
        method_fields: add these of the methods' flags only.
    """
    shared = {name: kind for group in groups for name, kind in group.items()}
    declared = method_flags() if of_methods or method_fields else {}
    if method_fields:
        declared = {name: declared[name] for name in method_fields}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        """Return the command with the options in its signature, for the parser to read."""

        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            """Gather what was parsed into ``values`` and ``chosen`` and call the command."""
            extra = {"values": {name: given.pop(name) for name in shared}}
            if declared:
                extra["chosen"] = _typed({name: given.pop(name) for name in declared})
            return command(**given, **extra)

        parameters = _parameters(command, shared, declared)
        # What typer reads to make the flags; a function has both, mypy knows but one.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _typed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given; repeatable ones as tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if value is not None and value != []
    }


def _parameters(
    command: Callable[..., Any],
    shared: Group,
    declared: Mapping[str, Any],
) -> list[inspect.Parameter]:
    """Return a command's own parameters, the shared options and the methods' flags."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        p.replace(kind=keyword)
        for p in inspect.signature(command, eval_str=True).parameters.values()
        if p.name not in ("values", "chosen")
    ]
    options = [*shared.items(), *((name, (kind, None)) for name, kind in declared.items())]
    added = [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in options
    ]
    return [not_empty(parameter) for parameter in own + added]


def method_flags() -> dict[str, Any]:
    """Field name → annotated type, over the configs of all methods."""
    texts: dict[str, str] = {}
    kinds = methods.option_kinds()
    choices: dict[str, tuple[str, ...]] = {}
    defaults: dict[str, dict[str, list[str]]] = {}
    # What all methods share is explained in general, however some of them restrict it.
    for field in fields(methods.MethodConfig):
        texts[field.name] = _text(field.metadata)
    for name, cls in methods.registry().items():
        for field in methods.options_of(cls):
            texts.setdefault(field.name, _text(field.metadata))
            choices[field.name] = (*choices.get(field.name, ()), *field.metadata["choices"])
            shown = defaults.setdefault(field.name, {})
            shown.setdefault(_default_text(field.default), []).append(name)
    everyone = len(methods.registry())
    return {
        name: Annotated[
            kinds[name] | None,
            option(
                "--" + name.replace("_", "-"),
                help=f"{text[:1].upper()}{text[1:]} {_who(defaults[name], everyone)}",
                panel="Method options",
                autocompletion=among(tuple(dict.fromkeys(choices[name]))),
            ),
        ]
        for name, text in texts.items()
    }


def _text(metadata: Mapping[str, Any]) -> str:
    choices = ", ".join(metadata["choices"])
    return f"{metadata['help']}: {choices}" if choices else str(metadata["help"])


def _default_text(value: Any) -> str:
    return "" if value is None or value == () else f"{value}"


def _who(defaults: dict[str, list[str]], everyone: int) -> str:
    """Say the default and the methods that have another, or whose the flag is.

    In round brackets: square ones would be markup to the help's printer.
    """
    if set(defaults) == {""}:
        return f"(for {', '.join(defaults[''])})"
    common = sum(map(len, defaults.values())) == everyone
    parts: list[str] = []
    for value, names in sorted(defaults.items(), key=lambda item: -len(item[1])):
        whose = "" if common and not parts else f" for {', '.join(names)}"
        parts.append(f"{value or 'auto'}{whose}")
    return f"(default {'; '.join(parts)})"
