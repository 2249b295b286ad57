"""``lpss eval``: the metrics of a checkpoint on its test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpss_cli.checkpoints.loading import read
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request, device_of
from lpss_cli.jobs.resolve import (
    input_file,
    preprocessing_notes,
    restore,
)
from lpss_cli.training.evaluation import evaluate


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a checkpoint on its test split.

    Attributes:
        path: The checkpoint.
        primary: Name of the metric that counts.
        metrics: All metrics by name.
    """

    path: Path
    primary: str
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"file": str(self.path), "primary_metric": self.primary, **self.metrics}


def evaluate_file(
    path: Path | None, request: Request, callback: JobCallback | None = None
) -> Evaluation:
    """Measure a checkpoint on its test split.

    Args:
        path: The checkpoint; None: the newest artifact in this folder.
        request: How to rebuild the network where the file does not say.
        callback: Told what was assumed.

    Raises:
        InputError: The file or the data do not exist or fit.
    """
    callback = callback or JobCallback()
    path = input_file(path, callback.on_note)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        callback.on_note(note)
    model, _, data = restore(checkpoint, request, callback.on_note)
    for note in preprocessing_notes(data):
        callback.on_note(note)
    metrics = evaluate(model, data.test, data.task, device=device_of(request.device))
    return Evaluation(path, data.task.primary, metrics)
