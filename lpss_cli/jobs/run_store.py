"""The runs of a comparison: their labels, their results on disk, and the measurement of each.

Results are written after every run, under its label. A run has a process of its own, and its state
is in ``running/`` beside the results until its result is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Mapping
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
from lpss_cli.sparsity.targets import parse_sparsity
from lpss_cli.utils import subprocesses
from lpss_cli.utils.files import atomic_write
from lpss_cli.utils.signals import Interrupts, SignalError

if TYPE_CHECKING:
    from lpss_cli.jobs.training_job import Outcome
    from lpss_cli.training.run import Run

#: A target as a fraction of zeros, or as it is typed: ``"0.9"``, ``"90%"``, ``"60x"``.
Target = float | str

_OTHER_FOLDER = "give another --out-dir"
_TARGET_IN_LABEL = re.compile("(?<= at )[^,]+(?=, seed )")
# Numbers in the result of a run that did not fail; the second ones may be unknown.
_NUMBERS = ("metric", "score", "zeros", "prunable")
_OPTIONAL_NUMBERS = ("hoyer", "seconds_per_epoch", "peak_bytes")


class RunStore:
    """Results of finished runs by label, on disk after each, and the state of the current run.

    Args:
        path: file of the results.
        identity: what all runs share.
        interrupts: interrupts of this process; signals wait, except while a run goes on.
        note: called after every run.
        total: number of runs that will be asked for, for the notes; 0 if unknown.

    Raises:
        InputError: the file holds results of something else.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        interrupts: Interrupts,
        note: Callable[[str], None],
        total: int = 0,
    ) -> None:
        self._path, self._interrupts, self._note = path, interrupts, note
        self._running = path.parent / "running"
        self._requested: dict[str, None] = {}
        self._total = total
        self._content: dict[str, Any] = {"of": identity, "runs": {}}
        if path.exists():
            self._content = _read(path)
            if self._content["of"] != json.loads(json.dumps(identity)):
                raise InputError(f"{path} is of another network, data or budget", _OTHER_FOLDER)
            for label in self._content["runs"]:
                self._clear(label)
        self._labels = {canonical_label(label): label for label in self._content["runs"]}

    @property
    def finished(self) -> int:
        """Number of runs on disk."""
        return len(self._content["runs"])

    def expect(self, more: int) -> None:
        """Expect more runs than were announced."""
        self._total += more

    def get(self, label: str, request: Request) -> dict[str, Any]:
        """Return the result of a run; do or resume the run first, if it is missing.

        Raises:
            InputError: its state or its result cannot be written.
            StoppedError: a signal came during the run.
            SignalError: a signal came before or after it, or a second one.
        """
        runs: dict[str, dict[str, Any]] = self._content["runs"]
        self._requested[label] = None
        known = self._labels.get(canonical_label(label))
        if known is not None:
            return runs[known]
        try:
            self._running.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._running} cannot be a folder of states: {error.strerror}", _OTHER_FOLDER
            ) from None
        out = self._output_of(label)
        if TrainingStateFiles(out).found:
            self._note(f"resuming {label}")
        try:
            result, warnings = subprocesses.call(
                self._interrupts, measure_run, replace(request, out=out)
            )
        except RunError as error:
            raise RunError(f"{label}: {error.what}", error.do) from error
        runs[label] = result
        self._labels[canonical_label(label)] = label
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        self._clear(label)
        for text in warnings:
            self._note(f"{label}: {text}")
        number = f"run {len(self._requested)} of {self._total}: " if self._total else ""
        self._note(f"{number}{label}: " + (result.get("failed") or f"{result['metric']:.4f}"))
        if self._interrupts.pending is not None:
            raise SignalError(self._interrupts.pending)
        return result

    def _output_of(self, label: str) -> Path:
        """Return the output of a run, with a file name that follows from the label."""
        label = canonical_label(label)
        name = re.sub(r"[^\w.-]+", "-", label.partition(", {")[0])
        return self._running / f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:12]}.pt"

    def _clear(self, label: str) -> None:
        """Remove the files of a finished run."""
        out = self._output_of(label)
        TrainingStateFiles(out).remove()
        out.unlink(missing_ok=True)
        with suppress(OSError):  # other files are in it
            self._running.rmdir()


def _read(path: Path) -> dict[str, Any]:
    """Return the results in a file.

    Raises:
        InputError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs = content["runs"]
        if "of" not in content or not all(map(_is_result, runs.values())):
            raise ValueError("a run is not as `lpss compare` writes it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a comparison: {error}", _OTHER_FOLDER) from error
    return dict(content)


def _is_result(run: Any) -> bool:
    """Return whether a value of unknown origin has the entries of a result."""
    if not isinstance(run, dict) or "failed" in run:
        return isinstance(run, dict) and isinstance(run["failed"], str)
    optional = [run.get(key) for key in _OPTIONAL_NUMBERS]
    numbers = [run.get(key) for key in _NUMBERS] + [
        value for value in optional if value is not None
    ]
    return isinstance(run.get("primary"), str) and all(type(n) in (int, float) for n in numbers)


# --- labels --------------------------------------------------------------------------------------
# A label keeps the target as it was typed. ``0.9``, ``90%`` and ``10x`` are the same target, so a
# run is found under any of them.


def run_label(method: str, target: Target, seed: int, options: Mapping[str, Any]) -> str:
    """Return the label of a run."""
    return f"{method} at {shown_target(target)}, seed {seed}, {json.dumps(options)}"


def canonical_label(label: str) -> str:
    """Return what all labels of the same run have in common.

    It is the label itself if its target is a fraction of up to six digits, as in older results.
    """
    with suppress(InputError):
        return _TARGET_IN_LABEL.sub(lambda match: canonical_target(match[0]), label)
    return label


def shown_target(target: Target) -> str:
    """Return a target as it was typed."""
    return target if isinstance(target, str) else f"{target:.6g}"


def canonical_target(target: Target) -> str:
    """Return what all spellings of a target have in common: six digits of the fraction."""
    return shown_target(sparsity_of(target))


def sparsity_of(target: Target) -> float:
    """Return a target as a fraction of zeros.

    Raises:
        InputError: it is not a number.
    """
    return parse_sparsity(target, "--sparsities")


# --- one run, in a process of its own ------------------------------------------------------------


def measure_run(interrupts: Interrupts, request: Request) -> tuple[dict[str, Any], list[str]]:
    """Train once, in this process, and return the result of the run and its warnings.

    An interrupted run is resumed; its peak memory is unknown then. A run that diverges has a result
    that says so.

    Args:
        interrupts: interrupts of this process; a signal before the first step ends it.
        request: the run. The caller removes its output and the state of an interrupted run.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    callback = _Listener(interrupts)
    is_new = not TrainingStateFiles(request.output).found
    try:
        outcome = _train(request, callback)
    except RunError as error:
        return {"failed": error.what}, callback.warnings
    report, primary = outcome.report, outcome.primary
    higher_is_better = report.meta.get("higher_is_better", True)
    value = outcome.after[primary]
    seconds = [epoch["seconds"] for epoch in report.meta["history"]]
    result = {
        "primary": primary,
        "metric": value,
        "score": value if higher_is_better else -value,
        "zeros": report.zeros,
        "prunable": report.weights,
        "hoyer": report.hoyer,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "peak_bytes": peak_bytes() if is_new else None,
    }
    return result, callback.warnings


class _Listener(JobCallback):
    """Collects the warnings, and lets signals wait once the training has begun."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self.warnings: list[str] = []

    def on_start(self, run: Run) -> None:
        """Leave signals to the job from now on; little is left to do after the training."""
        self._interrupts.defer()

    def on_warning(self, text: str) -> None:
        """Collect it."""
        self.warnings.append(text)


def _train(request: Request, callback: _Listener) -> Outcome:
    """Resume the run, or start it; a state that cannot be used is no reason to give up."""
    request = replace(request, resume=True, force=True, eval_every=0)
    try:
        return training_job.train(request, callback)
    except StateError as error:
        callback.on_warning(f"{error.what}; the run starts from the beginning")
        return training_job.train(replace(request, resume=False), callback)


def peak_bytes() -> int | None:
    """Return the peak memory of this process: of the GPU if one was used, else of the RAM."""
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
