"""``lpss plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import NetworkOptions, PlanOptions
from lpss_cli.training import method as methods
from lpss_cli.training.options import TrainingOptions
from lpss_cli.utils.options import only

# The method that is planned.
_METHOD = methods.get(methods.DEFAULT)


@with_options(
    PlanOptions,
    only(_METHOD.Config, *_METHOD.plan_options),
    only(TrainingOptions, "sparsity", "layers", "skip"),
    only(NetworkOptions, "arch", "data", "trust_pickle"),
    only(DataSpec, "data_dir", "target", "drop", "image_size"),
)
def plan(
    out: Out,
    typed: Typed,
    file: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint (default: --arch, else the newest artifact here)."),
    ] = None,
) -> None:
    """Predict p, Hoyer sparsity and kept weights before any training."""
    from lpss_cli.cli.views.report import plan_table
    from lpss_cli.jobs.plan import plan_for

    result = plan_for(file, typed.request(), typed.of(PlanOptions).hoyer, out.note)
    out.show(plan_table(result, out.width))
    out.note("Hoyer: without any pruning; 'Hoyer then': with all but the kept weights zero")
    out.document(result.to_dict())
