"""The runs of a comparison on disk: results of the finished ones, the state of the present one.

Results are written after every run. A run has a process of its own, and its state lies in
``running/`` beside them until its result is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.training_state import TrainingStateFiles
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs import training_job
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.resume import StateError
from lpss_cli.utils import subprocesses
from lpss_cli.utils.files import atomic_write
from lpss_cli.utils.signals import Interrupts, SignalError

if TYPE_CHECKING:
    from lpss_cli.jobs.training_job import Outcome
    from lpss_cli.training.run import Run

_OTHER = "give another --out-dir"
# What a run that did not fail says of itself; the last ones may be unknown.
_NUMBERS = ("metric", "score", "zeros", "prunable")
_PERHAPS = ("hoyer", "seconds_per_epoch", "peak_bytes")


class RunStore:
    """Finished runs by their label, on disk after each, and the state of the present one.

    Args:
        path: where the results are.
        identity: what all runs share.
        run_of: label → what it has in common with other labels of the same run.
        interrupts: of this process; signals wait but while a run is waited for.
        note: told about every finished run.
        total: how many runs will be asked for, as far as the notes say so.

    Raises:
        InputError: there are results of something else.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        run_of: Callable[[str], str],
        interrupts: Interrupts,
        note: Callable[[str], None],
        total: int = 0,
    ) -> None:
        self._path, self._interrupts, self._note = path, interrupts, note
        self._run_of = run_of
        self._running = path.parent / "running"
        self._asked: dict[str, None] = {}
        self._total = total
        self._content: dict[str, Any] = {"of": identity, "runs": {}}
        if path.exists():
            self._content = _read(path)
            if self._content["of"] != json.loads(json.dumps(identity)):
                raise InputError(f"{path} is of another network, data or budget", _OTHER)
            for label in self._content["runs"]:
                self._clear(label)
        self._labels = {run_of(label): label for label in self._content["runs"]}

    @property
    def finished(self) -> int:
        """How many runs are on disk."""
        return len(self._content["runs"])

    def expect(self, more: int) -> None:
        """Count on more runs than were known of at first."""
        self._total += more

    def get(self, label: str, request: Request) -> dict[str, Any]:
        """Return a run's result; run it first, or go on with it, if it is missing.

        Raises:
            InputError: the disk does not take its state or its result.
            StoppedError: a signal came while it ran.
            SignalError: a signal came before or afterwards, or a second one.
        """
        runs: dict[str, dict[str, Any]] = self._content["runs"]
        self._asked[label] = None
        known = self._labels.get(self._run_of(label))
        if known is not None:
            return runs[known]
        try:
            self._running.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._running} cannot be a folder of states: {error.strerror}", _OTHER
            ) from None
        out = self._out(label)
        if TrainingStateFiles(out).found:
            self._note(f"going on with {label}")
        try:
            runs[label], warnings = subprocesses.call(
                self._interrupts, measure_run, replace(request, out=out)
            )
        except RunError as error:
            raise RunError(f"{label}: {error.what}", error.do) from error
        self._labels[self._run_of(label)] = label
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        self._clear(label)
        for text in warnings:
            self._note(f"{label}: {text}")
        result = runs[label]
        which = f"run {len(self._asked)} of {self._total}: " if self._total else ""
        self._note(f"{which}{label}: " + (result.get("failed") or f"{result['metric']:.4f}"))
        if self._interrupts.pending is not None:
            raise SignalError(self._interrupts.pending)
        return result

    def _out(self, label: str) -> Path:
        """Return where a run writes, and has its state beside; no label is a name of a file."""
        label = self._run_of(label)
        name = re.sub(r"[^\w.-]+", "-", label.partition(", {")[0])
        return self._running / f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:12]}.pt"

    def _clear(self, label: str) -> None:
        """Remove what a finished run has left."""
        out = self._out(label)
        TrainingStateFiles(out).remove()
        out.unlink(missing_ok=True)
        with suppress(OSError):  # there is more in it
            self._running.rmdir()


def _read(path: Path) -> dict[str, Any]:
    """Return the results that are in a file.

    Raises:
        InputError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs = content["runs"]
        if "of" not in content or not all(map(_fits, runs.values())):
            raise ValueError("a run is not as `lpss compare` writes it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no comparison: {error}", _OTHER) from error
    return dict(content)


def _fits(run: Any) -> bool:
    """Whether a run of unknown origin has what rows are made of."""
    if not isinstance(run, dict) or "failed" in run:
        return isinstance(run, dict) and isinstance(run["failed"], str)
    some = [run.get(key) for key in _PERHAPS]
    numbers = [run.get(key) for key in _NUMBERS] + [value for value in some if value is not None]
    return isinstance(run.get("primary"), str) and all(type(n) in (int, float) for n in numbers)


# MERGED: One run of a comparison, in a process of its own: what it gave, its time and its memory.
class _Listener(JobCallback):
    """Keeps the warnings, and lets signals wait when the training has begun."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.warnings: list[str] = []

    def on_start(self, run: Run) -> None:
        """From here on the job takes signals; what follows the training is short."""
        self._interrupts.defer()

    def on_warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


def measure_run(interrupts: Interrupts, request: Request) -> tuple[dict[str, Any], list[str]]:
    """Train once, in this process, and return what is compared, and what was warned of.

    A run that was killed goes on; its peak of memory is not known. One that diverges says so.

    Args:
        interrupts: of this process; a signal before the first step ends the block.
        request: its output, and the state of the killed run, are the caller's to remove.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    callback = _Listener(interrupts)
    whole = not TrainingStateFiles(request.output).found
    try:
        outcome = _train(request, callback)
    except RunError as error:
        return {"failed": error.what}, callback.warnings
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
    return result, callback.warnings


def _train(request: Request, callback: _Listener) -> Outcome:
    """Go on with the run, or begin it; a state that is of no use is no reason to give up."""
    request = replace(request, resume=True, force=True, eval_every=0)
    try:
        return training_job.train(request, callback)
    except StateError as error:
        callback.on_warning(f"{error.what}; the run begins again")
        return training_job.train(replace(request, resume=False), callback)


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
