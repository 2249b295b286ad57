"""The command that writes a recipe: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli.cli import context as run
from lpss_cli.cli import options as o
from lpss_cli.cli.parser import with_options


@with_options(
    o.TRAINING,
    o.SEARCH,
    o.TEACHER,
    o.DATA,
    o.CHECKPOINT,
    o.DRAFT,
    o.WRITING,
    o.PRINTING,
    of_methods=True,
)
def init(
    file: Annotated[Path, typer.Argument(help="Checkpoint that is to become sparse.")],
    values: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    """Write a commented recipe for a network, with the options given."""
    from lpss_cli.jobs import config
    from lpss_cli.jobs.recipes.draft import draft

    printer = run.printer(values)
    out = values["out"] or Path("recipe.toml")
    typed = {
        name: value for name, value in values.items() if name in config.option_types()
    } | chosen
    drafted = draft(file, run.request(values, out, chosen, {}), typed, printer.note)
    if not values["as_json"]:
        printer.text(f"wrote {out}; next: {drafted.command}")
    printer.document(drafted.to_dict())
