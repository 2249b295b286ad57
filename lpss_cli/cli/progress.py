"""What a person sees while a job runs: notes, warnings and progress, as a panel or as lines."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lpss_cli.cli.console import Out, metric, number, share
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.sparsity import layer_info

if TYPE_CHECKING:
    from rich.live import Live

    from lpss_cli.training.run import Run

# Columns of a terminal that the panel takes at most, and those from which on it has three or two
# columns of numbers.
_WIDEST, _WIDE, _NARROW = 100, 72, 44
# Seconds over which the pace is measured.
_WINDOW = 20.0
# Seconds between two pictures of the panel.
_REFRESH = 0.25


@dataclass(frozen=True)
class Moment:
    """A run at one moment; what is not known is None.

    Attributes:
        epoch, epochs: Finished epochs, and all.
        step, steps: Finished steps, and all.
        loss: Mean of the current epoch, or of the last one at its end.
        sparsity, target: Fraction of zeros among the prunable weights now, and as asked for.
        hoyer: Mean Hoyer sparsity at the end of the last epoch.
        rate: Largest learning rate of the last step.
        metric: Name and value of the last measurement.
        before: Value of that metric for the input.
        pace: Examples per second; without a batch size, steps per second.
        left: Seconds to the end of training.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    sparsity: float
    target: float
    hoyer: float | None
    rate: float
    metric: tuple[str, float] | None = None
    before: float | None = None
    pace: float | None = None
    left: float | None = None


class Observer:
    """Observes one run.

    Args:
        run: A run that is about to begin or to be resumed.
        before: Value of the metric for the input.

    Attributes:
        measured: Name and value of the last measurement; None before the first.
    """

    def __init__(self, run: Run, before: float | None = None) -> None:
        self.measured: tuple[str, float] | None = None
        self._before = before
        self._marks = deque([(time.monotonic(), run.step)])
        self._fixed: float | None = None

    def moment(self, run: Run) -> Moment:
        """Return the run as it is now. It reads tensors, so it is not for every step."""
        done = run.step - run.epoch * run.steps_per_epoch
        last = run.history[-1] if run.history else None
        loss = float(run.loss_sum) / done if done else last["loss"] if last else None
        moment = Moment(
            epoch=run.epoch,
            epochs=run.epochs,
            step=run.step,
            steps=run.total_steps,
            loss=loss,
            sparsity=self._sparsity(run),
            target=run.sparsity,
            hoyer=last["hoyer"] if last else None,
            rate=max(group["lr"] for group in run.optimizer.param_groups),
            metric=self.measured,
            before=self._before,
        )
        return self._with_pace(moment, run.batch_size)

    def _sparsity(self, run: Run) -> float:
        if self._fixed is not None:
            return self._fixed
        now = run.masked / run.total if run.total else 0.0
        if run.step > run.final_prune_step:
            self._fixed = now
        return now

    def _with_pace(self, moment: Moment, batch_size: int) -> Moment:
        """Add the pace of the last seconds."""
        now = time.monotonic()
        self._marks.append((now, moment.step))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        (began, first), (_, last) = self._marks[0], self._marks[-1]
        if last == first or now <= began:
            return moment
        pace = (last - first) / (now - began)
        left = (moment.steps - moment.step) / pace
        return replace(moment, pace=pace * (batch_size or 1), left=left)


def line(moment: Moment) -> str:
    """Return a moment as one line, for a file or a pipe."""
    short = replace(moment, before=None)  # the line above all of them says it
    parts = [f"epoch {moment.epoch}/{moment.epochs}", *_values(short).values()]
    if moment.left:
        parts.append(f"{_clock(moment.left)} left")
    return "  ".join(parts)


def panel(moment: Moment, width: int) -> Panel:
    """Return a moment as a panel for a terminal of so many columns."""
    width = min(width, _WIDEST)
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    now = min(moment.epoch + 1, moment.epochs)
    left = f"{_clock(moment.left)} left" if moment.left is not None else ""
    bar = ProgressBar(total=moment.steps, completed=moment.step)
    head.add_row(Text(f"epoch {now}/{moment.epochs}", style="bold"), bar, left)
    columns = 3 if width >= _WIDE else 2 if width >= _NARROW else 1
    body = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        body.add_column(ratio=1)
    cells = [
        Text.assemble((value[: len(name)], "dim"), value[len(name) :])
        for name, value in _values(moment).items()
    ]
    for begin in range(0, len(cells), columns):
        body.add_row(*cells[begin : begin + columns])
    content = Table.grid(expand=True)
    content.add_row(head)
    content.add_row(body)
    return Panel(content, title="training", title_align="left", width=width)


def _values(moment: Moment) -> dict[str, str]:
    """Return ``name value`` of what is known by name, in the order of the cells of a panel."""
    values = {"loss": "-" if moment.loss is None else f"{moment.loss:.4g}"}
    if moment.metric is not None:
        name, value = moment.metric
        was = "" if moment.before is None else f"{metric(name, moment.before)} → "
        values[name.replace("_", " ")] = f"{was}{metric(name, value)}"
    values["sparsity"] = share(moment.sparsity)
    if moment.target:
        values["sparsity"] += f" → {share(moment.target)}"
    values["Hoyer"] = number(moment.hoyer)
    values["lr"] = f"{moment.rate:.3g}"
    if moment.pace is not None:
        values["examples/s"] = f"{moment.pace:,.0f}" if moment.pace >= 10 else f"{moment.pace:.2g}"
    return {name: f"{name} {value}" for name, value in values.items()}


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class Printer(JobCallback):
    """Prints the notes of a job and shows its progress; use it as a context manager.

    If a person watches, that is a panel that moves, else about ten lines per run.
    """

    def __init__(self, out: Out) -> None:
        self._out = out
        self._before: float | None = None
        self._observer: Observer | None = None
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def on_note(self, text: str) -> None:
        """Print it."""
        self._out.note(text)

    def on_warning(self, text: str) -> None:
        """Print it, even with --quiet."""
        self._out.warn(text)

    def busy(self, text: str) -> AbstractContextManager[None]:
        """Show a spinner where a person watches."""
        return self._out.busy(text)

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """Print the metrics of the input."""
        values = ", ".join(f"{k.replace('_', ' ')} {metric(k, v)}" for k, v in metrics.items())
        self._out.note(f"before: {values}")
        self._before = metrics[primary]

    def on_measured(self, metrics: dict[str, float], primary: str) -> None:
        """Keep them for the progress."""
        if self._observer is not None:
            self._observer.measured = primary, metrics[primary]

    def on_start(self, run: Run) -> None:
        """Print what was chosen for the layers, and start the panel if a person watches."""
        for text in layer_info.announcements(run.layer_info):
            self._out.note(text)
        self._stop()
        if not self._out.shows_progress or not run.total_steps:
            return

        self._observer = Observer(run, self._before)
        if self._out.is_live:
            from rich.live import Live

            # The steps draw it, without a thread: nothing moves when nothing happens.
            self._live = Live(console=self._out.stderr, transient=True, auto_refresh=False)
            self._live.start()

    def on_step(self, run: Run) -> None:
        """Redraw the panel when it is time."""
        if self._live is not None and time.monotonic() - self._drawn >= _REFRESH:
            self._draw(run)

    def on_epoch(self, run: Run) -> None:
        """Draw the end of an epoch, or print its line when it is time."""
        if self._live is not None:
            self._draw(run)
        elif self._observer is not None:
            from lpss_cli.jobs.loggers import interval

            moment = self._observer.moment(run)
            if run.epoch % interval(run.epochs, None) == 0 or run.epoch == run.epochs:
                self._out.note(line(moment))

    def _draw(self, run: Run) -> None:
        if self._live is not None and self._observer is not None:
            # A terminal writes ^C after the panel, which would be folded and not wiped away.
            width = self._out.stderr.width - 3
            self._live.update(panel(self._observer.moment(run), width), refresh=True)
            self._drawn = time.monotonic()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._observer = None
