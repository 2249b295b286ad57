"""What is kept of every epoch while a job trains: the metric, a log file, TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lpss_cli.errors import InputError
from lpss_cli.jobs.config import Request
from lpss_cli.training.callbacks import Callback, CallbackWrapper
from lpss_cli.training.state import RunState
from lpss_cli.utils import seeds
from lpss_cli.utils.files import atomic_write, reserve_output

# Measurements along a run where nobody says how many.
_MEASUREMENTS = 10


def interval(epochs: int, every: int | None) -> int:
    """Return the epochs between two looks at a run: those asked for, else a tenth of all.

    Args:
        epochs: of the whole run.
        every: what was asked for; 0: never.
    """
    return max(1, math.ceil(epochs / _MEASUREMENTS)) if every is None else every


class Meter(CallbackWrapper):
    """Measures the network after some of its epochs, for curves; nothing is chosen by it.

    The training goes on to the same bits: the random numbers that are drawn are given back.

    Args:
        inner: sees the epoch's record with the metric in it.
        measure: returns the metrics of the network as it is.
        name: of the metric to keep.
        every: epochs between two measurements; see :func:`interval`.
        tell: told the metrics and which of them is kept.

    Attributes:
        seconds: that all measurements took.
    """

    def __init__(
        self,
        inner: Callback,
        measure: Callable[[], dict[str, float]],
        name: str,
        every: int | None = None,
        tell: Callable[[dict[str, float], str], None] = lambda metrics, name: None,
    ) -> None:
        super().__init__(inner)
        self._measure, self._name, self._every, self._tell = measure, name, every, tell
        self.seconds = 0.0

    def on_epoch(self, run: RunState) -> None:
        """Add the metric to the epoch's record where it is time, and pass it on."""
        every = interval(run.epochs, self._every)
        if every and run.epoch % every == 0:
            began = time.perf_counter()
            with seeds.preserve_rng_state(run.device):
                metrics = self._measure()
            run.history[-1][self._name] = metrics[self._name]
            self._tell(metrics, self._name)
            self.seconds += time.perf_counter() - began
        super().on_epoch(run)


def line_of(run: RunState) -> dict[str, Any]:
    """Return what the log says of the epoch that has just ended.

    Fractions, seconds, examples a second; what is not finite is None.
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


class Log(CallbackWrapper):
    """Appends a JSON line an epoch to a file, at once; a resumed run goes on in the same file.

    Args:
        path: the file; lines of epochs that the run has still before it are removed.
        inner: sees everything first.
    """

    def __init__(self, path: Path, inner: Callback) -> None:
        super().__init__(inner)
        self._path = path

    def on_start(self, run: RunState) -> None:
        """Pass it on; leave the lines of the epochs that this run has behind it, no others."""
        super().on_start(run)
        kept = [line for line in _lines(self._path) if 1 <= _epoch(line) <= run.epoch]
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_epoch(self, run: RunState) -> None:
        """Pass it on and write the epoch's line; a disk that is full is no reason to stop."""
        super().on_epoch(run)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                _append(file, line_of(run))
        except OSError as error:
            self.on_warning(f"{self._path} could not be written: {error.strerror}")


def _append(file: IO[str], values: dict[str, Any]) -> None:
    # In one write: who reads along never sees half a line.
    file.write(json.dumps(values) + "\n")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _epoch(line: str) -> int:
    """Return a line's epoch; 0 where it is no line of a log."""
    try:
        epoch = json.loads(line)["epoch"]
    except (ValueError, TypeError, KeyError):
        return 0
    return epoch if type(epoch) is int else 0


class Board(CallbackWrapper):
    """Writes every epoch's numbers as TensorBoard events, by step.

    Args:
        folder: made if absent; a resumed run goes on there.
        inner: sees everything first.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, inner: Callback) -> None:
        super().__init__(inner)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoard is not installed", "pip install 'lpss-cli[tensorboard]'"
            ) from None
        self._make: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be a folder of events: {error.strerror}",
                "choose another --tensorboard",
            ) from None

    def on_start(self, run: RunState) -> None:
        """Pass it on; events of steps that the run has still before it count no more."""
        super().on_start(run)
        self._writer = self._make(str(self._folder), purge_step=run.step + 1 if run.step else None)

    def on_epoch(self, run: RunState) -> None:
        """Pass it on and write the epoch's numbers."""
        super().on_epoch(run)
        for name, value in line_of(run).items():
            if name not in ("epoch", "epochs", "step") and value is not None:
                self._writer.add_scalar(name, value, run.step)
        self._writer.flush()

    def close(self) -> None:
        """End the file of events."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def recorded(callback: Callback, request: Request) -> Iterator[Callback]:
    """Give a callback that keeps the records that were asked for beside showing the run.

    Args:
        callback: sees everything first.
        request: says which records, and whether a run goes on in them.

    Raises:
        InputError: one of them cannot be written, or exists already.
    """
    with contextlib.ExitStack() as held:
        if request.log is not None:
            again = request.force or request.resume
            held.enter_context(reserve_output(request.log, force=again, option="--log"))
            callback = Log(request.log, callback)
        if request.tensorboard is not None:
            board = Board(request.tensorboard, callback)
            held.callback(board.close)
            callback = board
        yield callback
