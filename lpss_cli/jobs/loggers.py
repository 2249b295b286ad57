"""Callbacks that record every epoch of a job: the metric, a log file, TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpss_cli.errors import InputError
from lpss_cli.jobs.config import Request
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.run import Run
from lpss_cli.utils import seeds
from lpss_cli.utils.files import atomic_write, reserve_output

# Measurements during a run if no interval is given.
_MEASUREMENTS = 10


def interval(epochs: int, every: int | None) -> int:
    """Return the number of epochs between two measurements: as given, else a tenth of all epochs.

    Args:
        epochs: epochs of the whole run.
        every: the interval that was asked for; 0: never.
    """
    return max(1, math.ceil(epochs / _MEASUREMENTS)) if every is None else every


class Meter(Callback):
    """Adds the metric to the records of some epochs, for curves; nothing is chosen by it.

    Training continues with the same bits: the random generators are restored afterwards.

    Args:
        measure: returns the metrics of the network as it is.
        name: name of the metric to record.
        every: epochs between two measurements; see :func:`interval`.
        tell: called with the metrics and the name of the one that is recorded.

    Attributes:
        seconds: total duration of the measurements.
    """

    def __init__(
        self,
        measure: Callable[[], dict[str, float]],
        name: str,
        every: int | None = None,
        tell: Callable[[dict[str, float], str], None] = lambda metrics, name: None,
    ) -> None:
        self._measure, self._name, self._every, self._tell = measure, name, every, tell
        self.seconds = 0.0

    def on_epoch(self, run: Run) -> None:
        """Measure, if it is time."""
        every = interval(run.epochs, self._every)
        if every and run.epoch % every == 0:
            began = time.perf_counter()
            with seeds.preserve_rng_state(run.device):
                metrics = self._measure()
            run.history[-1][self._name] = metrics[self._name]
            self._tell(metrics, self._name)
            self.seconds += time.perf_counter() - began


class JsonLogger(Callback):
    """Appends a JSON line per epoch to a file, at once; a resumed run continues the same file.

    Args:
        path: the file. Lines of epochs that the run has not finished are removed.
        warn: called if a line could not be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn

    def on_start(self, run: Run) -> None:
        """Keep the lines of the epochs that this run has finished, and no others."""
        kept = [line for line in _lines(self._path) if 1 <= _epoch(line) <= run.epoch]
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_epoch(self, run: Run) -> None:
        """Write the epoch's line; a full disk is no reason to stop the run."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # A single write: whoever follows the file never sees half a line.
                file.write(json.dumps(epoch_record(run)) + "\n")
        except OSError as error:
            self._warn(f"{self._path} could not be written: {error.strerror}")


class TensorBoardLogger(Callback):
    """Writes every epoch's numbers as TensorBoard events, by step.

    Args:
        folder: made if absent; a resumed run continues there.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoard is not installed", "pip install 'lpss-cli[tensorboard]'"
            ) from None
        self._make_writer: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be a folder of events: {error.strerror}",
                "choose another --tensorboard",
            ) from None

    def on_start(self, run: Run) -> None:
        """Open the file of events; events of steps that the run has not finished are hidden."""
        purge_step = run.step + 1 if run.step else None
        self._writer = self._make_writer(str(self._folder), purge_step=purge_step)

    def on_epoch(self, run: Run) -> None:
        """Write the epoch's numbers."""
        for name, value in epoch_record(run).items():
            if name not in ("epoch", "epochs", "step") and value is not None:
                self._writer.add_scalar(name, value, run.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def epoch_loggers(request: Request, warn: Callable[[str], None]) -> Iterator[list[Callback]]:
    """Open the loggers that were asked for, and close them after the block.

    Args:
        request: says which loggers, and whether the run is resumed.
        warn: called if a log could not be written.

    Yields:
        The loggers, in the order in which they are to be called.

    Raises:
        InputError: a log cannot be written, or exists already.
    """
    loggers: list[Callback] = []
    with contextlib.ExitStack() as stack:
        if request.log is not None:
            force = request.force or request.resume
            stack.enter_context(reserve_output(request.log, force=force, option="--log"))
            loggers.append(JsonLogger(request.log, warn))
        if request.tensorboard is not None:
            board = TensorBoardLogger(request.tensorboard)
            stack.callback(board.close)
            loggers.append(board)
        yield loggers


def epoch_record(run: Run) -> dict[str, Any]:
    """Return the numbers of the epoch that has just ended, as loggers write them.

    Fractions, seconds, examples per second; a number that is not finite is None.
    """
    record = run.history[-1]
    examples = run.steps_per_epoch * run.batch_size
    values = {
        "epoch": run.epoch,
        "epochs": run.epochs,
        "step": run.step,
        **record,
        "target": run.sparsity,
        "examples_per_second": examples / max(record["seconds"], 1e-9),
    }
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _epoch(line: str) -> int:
    """Return the epoch of a line; 0 if it is not a line of a log."""
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, TypeError, KeyError):
        return 0
    return epoch if type(epoch) is int else 0
