"""``lpss init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import (
    ComputeOptions,
    NetworkOptions,
    OutputOptions,
    SearchOptions,
)
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.utils.options import only, without


@with_options(
    only(TrainingOptions, "sparsity"),
    MethodOptions,
    SearchOptions,
    without(TrainingOptions, "sparsity"),
    ComputeOptions,
    NetworkOptions,
    DataSpec,
    OutputOptions,
    of_methods=True,
)
def init(
    file: Annotated[Path, typer.Argument(help="Checkpoint to write a recipe for.")],
    out: Out,
    typed: Typed,
) -> None:
    """Write a commented recipe for a network, with the options given."""
    from lpss_cli.jobs.recipes.draft import draft

    drafted = draft(file, typed.request(), typed.for_recipe, out.note)
    out.text(f"wrote {drafted.path}; next: {drafted.command}")
    out.document(drafted.to_dict())
