"""``lpss compare``."""

from __future__ import annotations

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import ComparisonOptions, ComputeOptions, NetworkOptions, RunOptions
from lpss_cli.training.options import TrainingOptions
from lpss_cli.utils.options import only, without


@with_options(
    ComparisonOptions,
    only(TrainingOptions, "epochs", "batch_size", "precision", "skip"),
    ComputeOptions,
    only(RunOptions, "checkpoint_steps"),
    without(NetworkOptions, "trust_pickle"),
    DataSpec,
)
def compare(out: Out, typed: Typed) -> None:
    """Train several methods alike and set them side by side."""
    from lpss_cli.cli.views.training import compare_table
    from lpss_cli.jobs.compare import study

    with out.busy("training"):
        result = study(typed.of(ComparisonOptions), typed.request(), out.note)
    out.show(compare_table(result.rows, result.title))
    out.note(f"all runs: {result.results}, picture: {result.picture}")
    out.document(result.to_dict())
