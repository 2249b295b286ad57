"""What a person sees while a job runs: notes, warnings, and how it goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lpss_cli.cli.out import Out
from lpss_cli.cli.wording import metric
from lpss_cli.runs.job import JobWatcher

if TYPE_CHECKING:
    from rich.live import Live

    from lpss_cli.cli.live import Observer
    from lpss_cli.state import RunState

# Seconds between two pictures of the panel.
_REFRESH = 0.25


class Printer(JobWatcher):
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
        for name, fact in run.facts.items():
            if "p" in fact:
                by_p.setdefault(fact["p"], []).append(name)
        for p, names in by_p.items():
            on = ", ".join(names) if len(names) <= 4 else f"{len(names)} weights"
            self._out.note(f"p = {p:.5g} on {on}")
        self._stop()
        if not self._out.talks or not run.total_steps:
            return
        from lpss_cli.cli.live import Observer

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
            from lpss_cli.cli.live import line
            from lpss_cli.runs.recording import interval

            moment = self._observer.moment(run)
            if run.epoch % interval(run.epochs, None) == 0 or run.epoch == run.epochs:
                self._out.note(line(moment))

    def _draw(self, run: RunState) -> None:
        from lpss_cli.cli.live import panel

        if self._live is not None and self._observer is not None:
            # The terminal writes ^C after it: on the next line the panel would not be wiped whole.
            width = self._out.stderr.width - 3
            self._live.update(panel(self._observer.moment(run), width), refresh=True)
            self._drawn = time.monotonic()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._observer = None
