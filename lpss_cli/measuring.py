"""One run of a comparison, in a process of its own: what it gave, its time and its memory."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpss_cli.errors import RunError
from lpss_cli.request import Request


def measure(request: Request) -> dict[str, Any]:
    """Train once, in this process, and return what is compared; a diverged run says so."""
    from lpss_cli import jobs

    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = jobs.train(replace(request, out=Path(folder) / "model.pt", eval_every=0))
        except RunError as error:
            return {"failed": error.what}
    report, primary = outcome.report, outcome.primary
    higher = report.meta.get("higher_is_better", True)
    value = outcome.after[primary]
    seconds = [epoch["seconds"] for epoch in report.meta["history"]]
    return {
        "primary": primary,
        "metric": value,
        "score": value if higher else -value,
        "zeros": report.zeros,
        "prunable": report.weights,
        "hoyer": report.hoyer,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int | None:
    """Return the most memory this process has held: on the GPU where one was used, else in RAM."""
    import sys

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
