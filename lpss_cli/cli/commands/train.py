"""``lpss train``."""

from __future__ import annotations

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import (
    ComputeOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
)
from lpss_cli.jobs.recipes import RecipeOptions
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.utils.options import only, without


@with_options(
    only(TrainingOptions, "sparsity"),
    MethodOptions,
    without(TrainingOptions, "sparsity", "distill", "temperature"),
    ComputeOptions,
    RecipeOptions,
    RunOptions,
    without(NetworkOptions, "trust_pickle"),
    DataSpec,
    OutputOptions,
    of_methods=True,
)
def train(out: Out, typed: Typed) -> None:
    """Train a network from scratch: dense, or sparse with --sparsity."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import trained
    from lpss_cli.jobs.training_job import train as train_network

    with Printer(out) as callback:
        outcome = train_network(typed.request("train", out.note), callback)
    out.show(trained(outcome))
    out.document(outcome.to_dict())
