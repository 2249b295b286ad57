"""From declared options to commands: their parameters, and their help on three levels.

``--help`` shows what every run needs, ``--method NAME --help`` adds the options of that method with
their defaults, and ``--help-all`` shows every option.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lpss_cli.cli import context
from lpss_cli.cli.context import Typed
from lpss_cli.cli.options import (
    PrintingOptions,
    help_of,
    help_of_methods,
    parameter,
    without_empty_paths,
)
from lpss_cli.training import method as methods
from lpss_cli.utils.options import METHOD_PANEL, Option, options, refuse_excluded

#: Options of a dataclass, or some of them.
Group = type[Any] | Mapping[str, Option]
# What the help needs to know is kept in the context of the parser under these names.
_EVERYTHING, _METHOD = "lpss.everything", "lpss.method"
# Parameters of every command that are not arguments of the command line.
_PASSED = ("out", "typed")


@dataclass(frozen=True)
class Shown:
    """The options of a command, for its help.

    Attributes:
        declared: All options by the names of their fields.
        of_methods: Names of the options of methods that the help shows only with a method.
    """

    declared: Mapping[str, Option]
    of_methods: Collection[str]


def with_options(
    *groups: Group, of_methods: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options.

    The command is called with ``out``, what it prints with, and ``typed``, its options, beside its
    arguments.

    Args:
        groups: Dataclasses that declare options, or some options of one; ``PrintingOptions`` come
            with every command.
        of_methods: Add the options of all methods.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = _merged((*groups, PrintingOptions))
        every = methods.all_options() if of_methods else {}
        added = {key: replace(item, group=METHOD_PANEL) for key, item in every.items()}
        declared = shared | added

        @functools.wraps(command)
        def wrapper(*, help_all: bool, **parsed: Any) -> None:
            """Gather the options and call the command."""
            typed = Typed(declared, {name: _given(parsed.pop(name)) for name in declared})
            printing = typed.of(PrintingOptions)
            out = context.start(printing.as_json, printing.quiet)
            refuse_excluded(item for name, item in declared.items() if typed.values[name])
            command(out=out, typed=typed, **parsed)

        parameters = [
            *_arguments(command),
            *(parameter(item, help_of(item, command.__name__)) for item in shared.values()),
            *(parameter(item, help_of_methods(item)) for item in added.values()),
            _HELP_ALL,
        ]
        # What the parser reads to make the flags; functions have attributes, mypy knows only some.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {item.name: item.annotation for item in parameters}
        wrapper.shown = Shown(declared, tuple(added))  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _merged(groups: Collection[Group]) -> dict[str, Option]:
    merged: dict[str, Option] = {}
    for group in groups:
        merged |= options(group) if isinstance(group, type) else group
    return merged


def _given(value: Any) -> Any:
    """Return what was typed for an option; None for a repeatable one that was not."""
    if isinstance(value, list):
        return tuple(value) or None
    return value


def _arguments(command: Callable[..., None]) -> list[inspect.Parameter]:
    """Return the arguments that a command declares itself."""
    return [
        without_empty_paths(declared.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        for declared in inspect.signature(command, eval_str=True).parameters.values()
        if declared.name not in _PASSED
    ]


def _show_everything(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_EVERYTHING] = True
        typer.echo(ctx.get_help(), color=ctx.color)
        raise typer.Exit


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--help-all",
            is_eager=True,
            callback=_show_everything,
            show_default=False,
            help="Show all options and exit.",
        ),
    ],
)


class Command(TyperCommand):
    """A command whose help shows some of its options, or all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command, after a look at the method whose help is wanted."""
        if "--help" in args or "-h" in args:
            typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta[_METHOD] = typed.get("method")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help on the level that was asked for."""
        method = ctx.meta.get(_METHOD)
        view = self._view(ctx.meta.get(_EVERYTHING, False), method)
        hidden = len(self.params) - len(view.params)
        if hidden:
            view.epilog = self._epilog(ctx.command_path, hidden)
        else:
            view.params = [p for p in view.params if p.name != _HELP_ALL.name]
        TyperCommand.format_help(view, ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete all options, but not their aliases."""
        return TyperCommand.shell_complete(self._view(everything=True), ctx, incomplete)

    def _view(self, everything: bool, method: str | None = None) -> Command:
        """Return the command with the parameters that its help shows, without aliases."""
        view = copy.copy(self)
        view.params = list(filter(None, (self._shown(p, everything, method) for p in self.params)))
        return view

    def _shown(self, param: Any, everything: bool, method: str | None) -> Any:
        """Return a parameter as the help shows it, or None."""
        shown: Shown = self.callback.shown  # type: ignore[union-attr]  # made by with_options
        item = shown.declared.get(param.name)
        if item is None:
            return param
        param = copy.copy(param)
        param.opts = [flag for flag in param.opts if flag not in item.alias_flags]
        if everything:
            return param
        if param.name not in shown.of_methods:
            return None if item.advanced else param
        found = _option_of(method, item.key)
        if found is None:
            return None
        param.help, param.rich_help_panel = help_of(found), f"Options of {method}"
        return param

    def _epilog(self, command: str, hidden: int) -> str:
        shown: Shown = self.callback.shown  # type: ignore[union-attr]  # made by with_options
        lines = [f"{hidden} more options: {command} --help-all"]
        if shown.of_methods:
            lines.insert(0, f"Options of a method: {command} --method NAME --help")
        return "\n\n".join(lines)


def _option_of(method: str | None, key: str) -> Option | None:
    """Return the option of a method with that key, if there is one."""
    cls = methods.registry().get(method or "")
    found = methods.options_of(cls) if cls else ()
    return next((item for item in found if item.key == key), None)
