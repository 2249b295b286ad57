"""``lpss eval``."""

from __future__ import annotations

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.options import File
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import ComputeOptions, NetworkOptions
from lpss_cli.utils.options import only


@with_options(NetworkOptions, DataSpec, only(ComputeOptions, "device"))
def evaluate(out: Out, typed: Typed, file: File = None) -> None:
    """Print the metric of a checkpoint on its test split, alone."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.jobs.evaluate import evaluate_file

    result = evaluate_file(file, typed.request(), Printer(out))
    out.text(f"{result.metrics[result.primary]:.6g}")
    out.document(result.to_dict())
