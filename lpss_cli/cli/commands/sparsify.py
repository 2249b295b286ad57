"""``lpss sparsify``."""

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
    RunOptions,
    SearchOptions,
)
from lpss_cli.jobs.recipes import RecipeOptions
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.utils.options import only, without


@with_options(
    only(TrainingOptions, "sparsity"),
    MethodOptions,
    SearchOptions,
    without(TrainingOptions, "sparsity"),
    ComputeOptions,
    RecipeOptions,
    RunOptions,
    NetworkOptions,
    DataSpec,
    OutputOptions,
    of_methods=True,
)
def sparsify(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint: .pt, .pth, .safetensors, or a Hub folder.")
    ],
    out: Out,
    typed: Typed,
) -> None:
    """Sparse-train a checkpoint, to exactly 90 % zeros or --sparsity."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import sparsified
    from lpss_cli.jobs.sparsify import sparsify as sparsify_file

    with Printer(out) as callback:
        result = sparsify_file(file, typed.request("sparsify", out.note), callback)
    out.show(sparsified(result))
    out.document(result.to_dict())
