"""Recipes: the options of an experiment in a TOML file, so that its command is one name.

A recipe has a ``title``, a ``source`` (the paper), for the experiments of a table ``table``, the
``published`` result (a fraction), the ``seeds`` to reproduce it with, a ``note`` about what the
source leaves open, and the options of the commands it is for, under ``[train]`` and ``[sparsify]``.
The packaged recipes are in this folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lpss_cli.errors import InputError, nearest
from lpss_cli.jobs import config
from lpss_cli.jobs.config import Request
from lpss_cli.utils.options import TRAINING_PANEL, option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Folder of the packaged recipes.
FOLDER = Path(__file__).parent
STAGES = ("train", "sparsify")


def names() -> tuple[str, ...]:
    """Return the names of the packaged recipes."""
    return tuple(sorted(path.name.removesuffix(".toml") for path in FOLDER.glob("*.toml")))


@dataclass(frozen=True)
class RecipeOptions:
    """Where further options come from.

    Attributes:
        recipe: Name of a packaged recipe, or path of a ``.toml`` file; None: nowhere.
    """

    recipe: str | None = option(
        None,
        "take options from a published experiment or a .toml file; options that are typed win",
        group=TRAINING_PANEL,
        suggestions=names,
        recipe=False,
    )


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: Name of the packaged recipe or of the file, without ``.toml``.
        title: What it is, in a line.
        source: The paper that published it.
        published: Its primary metric there, as a fraction; None: not published.
        table: The table of the paper's results that it belongs to.
        seeds: Seeds of the runs of a reproduction.
        note: What the source leaves open, and what was chosen.
        train, sparsify: Options by key, checked; None: the recipe is not for that command.
    """

    name: str
    title: str
    source: str = ""
    published: float | None = None
    table: str = ""
    seeds: tuple[int, ...] = (0,)
    note: str = ""
    train: Mapping[str, Any] | None = None
    sparsify: Mapping[str, Any] | None = None

    def options(self, stage: str) -> dict[str, Any]:
        """Return the options for ``lpss train`` or ``lpss sparsify``.

        Raises:
            InputError: The recipe is not for that command.
        """
        options = getattr(self, stage)
        if options is None:
            other = next(name for name in STAGES if name != stage)
            raise InputError(
                f"the recipe {self.name} has no [{stage}] part",
                f"lpss {other} --recipe takes it",
            )
        return dict(options)


def make_request(
    name: str | None,
    stage: str,
    typed: Mapping[str, Any],
    note: Callable[[str], None] = lambda _: None,
    **rest: Any,
) -> Request:
    """Make the request of a command that may have a recipe; see ``config.make_request``.

    Args:
        name: Name or path of the recipe; None: there is none.
        stage: The command, one of ``STAGES``.
        typed: Options that were typed; they win over those of the recipe.
        note: Told which recipe it is.
        rest: Fields of ``Request`` that a recipe does not set.

    Raises:
        InputError: There is no such recipe, it is not for that command, or an option is wrong.
    """
    if name is None:
        return config.make_request(typed, **rest)
    recipe = read(name)
    note(f"recipe {recipe.name}: {recipe.title}")
    return config.make_request(typed, recipe.options(stage), **rest)


def read(name: str) -> Recipe:
    """Read a packaged recipe by its name, or a file by its path (which ends in ``.toml``).

    Raises:
        InputError: There is none, or it is not a recipe.
    """
    if not name.endswith(".toml"):
        if name not in names():
            raise InputError(f"no recipe called {name!r}", f"{nearest(name, names())}, or a .toml")
        return _parse(FOLDER / f"{name}.toml")
    return _parse(Path(name))


def _parse(path: Path) -> Recipe:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", "check the path after --recipe"
        ) from None
    return loads(path, content)


def loads(path: Path, content: bytes) -> Recipe:
    """Read a recipe from the bytes of a file; ``path`` names it, and is not opened.

    Raises:
        InputError: It is not a recipe.
    """
    try:
        table = tomllib.loads(content.decode())
    except ValueError as error:  # of TOML, or of UTF-8
        raise InputError(f"{path} is not a TOML file: {error}", "repair the file") from None
    try:
        return _recipe(path.name.removesuffix(".toml"), table)
    except InputError as error:
        raise InputError(f"{path}: {error.what}", error.do) from None


def _recipe(name: str, content: Mapping[str, Any]) -> Recipe:
    """Check everything that a file says."""
    known = tuple(field.name for field in fields(Recipe) if field.name != "name")
    for key in content:
        if key not in known:
            raise InputError(f"a recipe has no {key!r}", nearest(key, known))
    stages: dict[str, Any] = {
        stage: _stage(stage, content[stage]) for stage in STAGES if stage in content
    }
    if not stages:
        raise InputError("there are no options", "write them under [train] or [sparsify]")
    rest = {key: value for key, value in content.items() if key not in STAGES}
    for key in ("title", "source", "table", "note"):
        _must(isinstance(rest.get(key, ""), str), key, "a string")
    _must(bool(rest.get("title")), "title", "a line that says what it is")
    published = rest.get("published")
    _must(published is None or type(published) is float, "published", "a fraction, such as 0.95")
    seeds = rest.get("seeds", [0])
    are_seeds = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    _must(are_seeds and bool(seeds), "seeds", "a list of whole numbers, such as [0, 1]")
    return Recipe(name, **{**rest, "seeds": tuple(seeds)}, **stages)


def _stage(stage: str, options: Any) -> dict[str, Any]:
    _must(isinstance(options, dict), stage, "a table of options")
    try:
        return config.read_options(options)
    except InputError as error:
        raise InputError(f"[{stage}] {error.what}", error.do) from None


def _must(fits: bool, key: str, kind: str) -> None:
    if not fits:
        raise InputError(f"{key} is not {kind}", f"make it {kind}")
