"""The command that is running: what was typed, and what it prints with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lpss_cli.cli.console import Out
from lpss_cli.distributed import launch
from lpss_cli.jobs import config, recipes
from lpss_cli.jobs.config import Request
from lpss_cli.utils.options import Option, options

Declared = TypeVar("Declared")

# What the running command prints with: errors go the same way.
_current = Out()


def start(as_json: bool, quiet: bool) -> Out:
    """Return what the command prints with."""
    global _current
    _current = Out(as_json, quiet, silent=launch.place().rank > 0)
    return _current


def fail(what: str, do: str) -> None:
    """Print an error, once for all processes of a run."""
    if launch.place().size == 1:
        _current.error(what, do)
        return
    from lpss_cli.distributed.context import turn

    with turn() as mine:
        if mine:
            _current.error(what, do)


def command_line() -> str:
    """Return what was typed, quoted for a shell."""
    import shlex

    return shlex.join([*launch.words("lpss"), *sys.argv[1:]])


@dataclass(frozen=True)
class Typed:
    """The options of the running command.

    Attributes:
        declared: The options that the command has, by the names of their fields.
        values: What was typed, by the same names; None where an option was not.
    """

    declared: Mapping[str, Option]
    values: Mapping[str, Any]

    def of(self, cls: type[Declared]) -> Declared:
        """Return an instance of a dataclass of options with what was typed.

        Raises:
            InputError: A value cannot be read.
        """
        known = options(cls)
        given = {k: v for k, v in self.values.items() if k in known and v is not None}
        return cls(**{name: known[name].read(value) for name, value in given.items()})

    @property
    def for_recipe(self) -> dict[str, Any]:
        """What was typed of the options that a recipe may set, by key."""
        return self._request_values(recipe=True)

    def request(self, stage: str = "", note: Callable[[str], None] = lambda _: None) -> Request:
        """Return the request of the command.

        Args:
            stage: The command, where it takes a recipe.
            note: Told which recipe it is.

        Raises:
            InputError: A value cannot be read, or the recipe is wrong.
        """
        return recipes.make_request(
            self.values.get("recipe"),
            stage,
            self.for_recipe,
            note,
            command=command_line(),
            **self._request_values(recipe=False),
        )

    def path(self, name: str) -> Path | None:
        """Return the path that was typed for an option."""
        path: Path | None = self.values[name]
        return path

    def _request_values(self, recipe: bool) -> dict[str, Any]:
        """Return what was typed of the options of a request, those of recipes or the others."""
        known = config.request_options()
        return {
            item.key if recipe else name: self.values[name]
            for name, item in self.declared.items()
            if item.key in known and item.recipe is recipe and self.values[name] is not None
        }
