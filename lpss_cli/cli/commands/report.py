"""``lpss report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli.console import Out, size
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import NetworkOptions, OutputOptions, ReportOptions
from lpss_cli.utils.options import only


@with_options(ReportOptions, NetworkOptions, DataSpec, only(OutputOptions, "force"))
def report(
    out: Out,
    typed: Typed,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints (default: the newest artifact here)."),
    ] = None,
) -> None:
    """Count zeros and measure Hoyer sparsity, layer by layer."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views import report as views
    from lpss_cli.jobs.report import report_files

    wanted, callback = typed.of(ReportOptions), None if out.quiet else Printer(out)
    with out.busy("measuring"):
        reports = report_files(files or (), typed.request(), wanted, callback)
    if wanted.html is not None:
        out.note(f"wrote {wanted.html}, {size(wanted.html.stat().st_size)}")
    if wanted.csv:
        out.text(views.csv_text(reports).rstrip("\n"))
        return
    for item in reports:
        for text in views.warnings(item):
            out.warn(text)
        out.show(views.layer_table(item, out.width), views.origin_table(item))
        out.show(*views.measured_tables(item))
    documents = [item.to_dict() for item in reports]
    out.document(documents[0] if len(documents) == 1 else documents)
