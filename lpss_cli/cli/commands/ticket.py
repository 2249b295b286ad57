"""``lpss ticket``."""

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
    TicketOptions,
)
from lpss_cli.training import method as methods
from lpss_cli.training.options import TrainingOptions
from lpss_cli.utils.options import only, without


@with_options(
    TicketOptions,
    only(methods.get(methods.DENSE).Config, "lr", "momentum", "weight_decay", "clip", "warmup"),
    only(TrainingOptions, "epochs", "batch_size", "seed", "precision"),
    ComputeOptions,
    without(RunOptions, "keep_init"),
    NetworkOptions,
    DataSpec,
    OutputOptions,
)
def ticket(
    file: Annotated[Path, typer.Argument(help="Sparse checkpoint whose mask is trained again.")],
    out: Out,
    typed: Typed,
) -> None:
    """Train a sparse network's mask again, beside a random one."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import ticket_panel
    from lpss_cli.jobs.ticket import ticket as train_ticket

    wanted = typed.of(TicketOptions)
    with Printer(out) as callback:
        result = train_ticket(
            file, typed.request(), wanted.start, control=wanted.control, callback=callback
        )
    out.show(ticket_panel(result))
    out.document(result.to_dict())
