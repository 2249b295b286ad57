"""Trainings asked for by plain options: from scratch, or from a dense network made first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lpss_cli.jobs import sparse_training, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.training_job import Outcome

# What a person types beside the data, by the names of the options.
_OF_DATA = ("data_dir", "augment", "target", "drop", "split_seed")


def trained(**options: Any) -> Outcome:
    """Train from scratch; ``options`` are those of :func:`request_for`.

    Raises:
        RunError: training diverged.
    """
    with tempfile.TemporaryDirectory() as folder:
        return training_job.train(request_for(Path(folder) / "m.pt", **options))


def sparsified(dense: Path, start: dict[str, Any], **options: Any) -> Outcome:
    """Sparsify a checkpoint, which is trained from scratch first where it is not there.

    Args:
        dense: the checkpoint.
        start: how it is trained; :func:`request_for` takes the same.
        options: of the sparsifying, likewise.

    Raises:
        RunError: training diverged.
    """
    if not dense.exists():
        training_job.train(request_for(dense, **start))
    with tempfile.TemporaryDirectory() as folder:
        return sparse_training.sparsify_checkpoint(
            dense, request_for(Path(folder) / "m.pt", **options)
        )


def request_for(out: Path, **options: Any) -> Request:
    """Ask for a file by fields of a request and options of the data (``augment``, ``target``…)."""
    overrides = {name: options.pop(name) for name in _OF_DATA if name in options}
    return Request(out, data_overrides=overrides, **options)
