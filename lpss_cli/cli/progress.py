"""What a person sees while a job runs: notes, a bar per run, warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lpss_cli.cli.out import Out
from lpss_cli.cli.wording import metric
from lpss_cli.job import JobWatcher

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from lpss_cli.state import RunState


class Printer(JobWatcher):
    """Prints a job's notes and draws its bar; use as a context manager."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_note(self, text: str) -> None:
        """Print it."""
        self._out.note(text)

    def on_warning(self, text: str) -> None:
        """Print it, whatever the verbosity."""
        self._out.warn(text)

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """Print the input's metrics first."""
        values = ", ".join(f"{k.replace('_', ' ')} {metric(k, v)}" for k, v in metrics.items())
        self._out.note(f"before: {values}")

    def on_start(self, run: RunState) -> None:
        """Start the bar, where a person watches."""
        by_p: dict[float, list[str]] = {}
        for name, fact in run.facts.items():
            if "p" in fact:
                by_p.setdefault(fact["p"], []).append(name)
        for p, names in by_p.items():
            on = ", ".join(names) if len(names) <= 4 else f"{len(names)} weights"
            self._out.note(f"p = {p:.5g} on {on}")
        if not self._out.live or not run.total_steps:
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._out.stderr,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=run.total_steps, completed=run.step, rate=""
        )

    def on_step(self, run: RunState) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=run.step)

    def on_epoch(self, run: RunState) -> None:
        """Show the epoch's loss and sparsity beside the bar."""
        if self._bar is None or self._task is None:
            return
        last = run.history[-1]
        rate = run.steps_per_epoch / max(last["seconds"], 1e-9)
        self._bar.update(
            self._task,
            description=(
                f"epoch {run.epoch}/{run.total_steps // run.steps_per_epoch}"
                f"  loss {last['loss']:.3f}  {last['sparsity']:.1%} zero"
            ),
            rate=f"{rate:,.0f}/s",
        )
