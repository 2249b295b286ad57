"""What a person sees while a job runs: notes, warnings, and how it goes."""

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

if TYPE_CHECKING:
    from rich.live import Live

    from lpss_cli.training.state import RunState

# MERGED: How a running training looks: numbers of one moment, as a panel or as a line.
# Columns of a terminal that the panel takes at most, and those that three columns of it need.
_WIDEST, _WIDE, _NARROW = 100, 72, 44
# Seconds that the pace is taken over.
_WINDOW = 20.0


@dataclass(frozen=True)
class Moment:
    """What there is to say of a run at one moment; what is not known is None.

    Attributes:
        epoch, epochs: finished ones, and all.
        step, steps: finished ones, and all.
        loss: mean of the present epoch, or of the last one at its end.
        sparsity, target: zeros / prunable weights now, and as asked for.
        hoyer: mean at the end of the last epoch.
        rate: largest learning rate of the last step.
        metric: name and value of the last measurement.
        before: the input's value of it.
        pace: examples a second; without a batch size, steps a second.
        left: seconds to the end of training.
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
    """Takes the moments of one run.

    Args:
        run: about to begin, or to go on.
        before: the input's value of the metric.
    """

    def __init__(self, run: RunState, before: float | None = None) -> None:
        self.measured: tuple[str, float] | None = None
        self._before = before
        self._marks = deque([(time.monotonic(), run.step)])
        self._fixed: float | None = None

    def moment(self, run: RunState) -> Moment:
        """Return what there is to say now; it reads tensors, so it is not for every step."""
        done = run.step - run.epoch * run.steps_per_epoch
        last = run.history[-1] if run.history else None
        loss = float(run.loss_sum) / done if done else last["loss"] if last else None
        found = Moment(
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
        return self._paced(found, run.batch_size)

    def _sparsity(self, run: RunState) -> float:
        if self._fixed is not None:
            return self._fixed
        now = run.masked / run.total if run.total else 0.0
        if run.step > run.final_prune_step:
            self._fixed = now
        return now

    def _paced(self, moment: Moment, batch_size: int) -> Moment:
        """Add how fast it goes, over the last seconds."""
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
    whole = Table.grid(expand=True)
    whole.add_row(head)
    whole.add_row(body)
    return Panel(whole, title="training", title_align="left", width=width)


def _values(moment: Moment) -> dict[str, str]:
    """Return name → ``name value`` of what is known, in the order of a panel's cells."""
    found = {"loss": "-" if moment.loss is None else f"{moment.loss:.4g}"}
    if moment.metric is not None:
        name, value = moment.metric
        was = "" if moment.before is None else f"{metric(name, moment.before)} → "
        found[name.replace("_", " ")] = f"{was}{metric(name, value)}"
    found["sparsity"] = share(moment.sparsity)
    if moment.target:
        found["sparsity"] += f" → {share(moment.target)}"
    found["Hoyer"] = number(moment.hoyer)
    found["lr"] = f"{moment.rate:.3g}"
    if moment.pace is not None:
        found["examples/s"] = f"{moment.pace:,.0f}" if moment.pace >= 10 else f"{moment.pace:.2g}"
    return {name: f"{name} {value}" for name, value in found.items()}


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


# Seconds between two pictures of the panel.
_REFRESH = 0.25


class Printer(JobCallback):
    """Prints a job's notes and shows how it goes; use as a context manager.

    Where a person watches that is a panel that moves, else a line now and then, about ten a run.
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
        """Print it, whatever the verbosity."""
        self._out.warn(text)

    def busy(self, text: str) -> AbstractContextManager[None]:
        """Show a spinner where a person watches."""
        return self._out.busy(text)

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """Print the input's metrics first."""
        values = ", ".join(f"{k.replace('_', ' ')} {metric(k, v)}" for k, v in metrics.items())
        self._out.note(f"before: {values}")
        self._before = metrics[primary]

    def on_measured(self, metrics: dict[str, float], primary: str) -> None:
        """Keep it, to show it."""
        if self._observer is not None:
            self._observer.measured = primary, metrics[primary]

    def on_start(self, run: RunState) -> None:
        """Say which p was chosen, and start the panel where a person watches."""
        by_p: dict[float, list[str]] = {}
        for name, fact in run.layer_info.items():
            if "p" in fact:
                by_p.setdefault(fact["p"], []).append(name)
        for p, names in by_p.items():
            on = ", ".join(names) if len(names) <= 4 else f"{len(names)} weights"
            self._out.note(f"p = {p:.5g} on {on}")
        self._stop()
        if not self._out.talks or not run.total_steps:
            return

        self._observer = Observer(run, self._before)
        if self._out.live:
            from rich.live import Live

            # Drawn by the steps themselves: no thread, so nothing moves when nothing happens.
            self._live = Live(console=self._out.stderr, transient=True, auto_refresh=False)
            self._live.start()

    def on_step(self, run: RunState) -> None:
        """Draw the panel anew when it is time."""
        if self._live is not None and time.monotonic() - self._drawn >= _REFRESH:
            self._draw(run)

    def on_epoch(self, run: RunState) -> None:
        """Draw the end of an epoch, or print its line when it is time."""
        if self._live is not None:
            self._draw(run)
        elif self._observer is not None:
            from lpss_cli.jobs.loggers import interval

            moment = self._observer.moment(run)
            if run.epoch % interval(run.epochs, None) == 0 or run.epoch == run.epochs:
                self._out.note(line(moment))

    def _draw(self, run: RunState) -> None:

        if self._live is not None and self._observer is not None:
            # The terminal writes ^C after it: on the next line the panel would not be wiped whole.
            width = self._out.stderr.width - 3
            self._live.update(panel(self._observer.moment(run), width), refresh=True)
            self._drawn = time.monotonic()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._observer = None
