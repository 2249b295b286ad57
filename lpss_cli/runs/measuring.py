"""One run of a comparison, in a process of its own: what it gave, its time and its memory."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import RunError
from lpss_cli.runs.generations import Generations
from lpss_cli.runs.job import JobWatcher
from lpss_cli.runs.request import Request
from lpss_cli.runs.resuming import StateError
from lpss_cli.utils.signals import Interrupts

if TYPE_CHECKING:
    from lpss_cli.runs.outcome import Outcome
    from lpss_cli.state import RunState


class _Listener(JobWatcher):
    """Keeps the warnings, and lets signals wait when the training has begun."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.warnings: list[str] = []

    def on_start(self, run: RunState) -> None:
        """From here on the job takes signals; what follows the training is short."""
        self._interrupts.defer()

    def on_warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


def measure(interrupts: Interrupts, request: Request) -> tuple[dict[str, Any], list[str]]:
    """Train once, in this process, and return what is compared, and what was warned of.

    A run that was killed goes on; its peak of memory is not known. One that diverges says so.

    Args:
        interrupts: of this process; a signal before the first step ends the block.
        request: its output, and the state of the killed run, are the caller's to remove.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    watcher = _Listener(interrupts)
    whole = not Generations(request.out).found
    try:
        outcome = _train(request, watcher)
    except RunError as error:
        return {"failed": error.what}, watcher.warnings
    report, primary = outcome.report, outcome.primary
    higher = report.meta.get("higher_is_better", True)
    value = outcome.after[primary]
    seconds = [epoch["seconds"] for epoch in report.meta["history"]]
    result = {
        "primary": primary,
        "metric": value,
        "score": value if higher else -value,
        "zeros": report.zeros,
        "prunable": report.weights,
        "hoyer": report.hoyer,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "peak_bytes": peak_bytes() if whole else None,
    }
    return result, watcher.warnings


def _train(request: Request, watcher: _Listener) -> Outcome:
    """Go on with the run, or begin it; a state that is of no use is no reason to give up."""
    from lpss_cli.runs import jobs

    request = replace(request, resume=True, force=True, eval_every=0)
    try:
        return jobs.train(request, watcher)
    except StateError as error:
        watcher.on_warning(f"{error.what}; the run begins again")
        return jobs.train(replace(request, resume=False), watcher)


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
