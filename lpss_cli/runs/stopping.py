"""How a job ends when a signal comes, or when another of its processes is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lpss_cli.errors import StoppedError
from lpss_cli.processes.distributed import LostError, World
from lpss_cli.runs.resuming import Keeper
from lpss_cli.state import RunState
from lpss_cli.utils.signals import Interrupts, SignalledError, kill_children


@contextmanager
def stoppable(keeper: Keeper, interrupts: Interrupts) -> Iterator[None]:
    """End the job's readers when the block is stopped, and say how to go on.

    Raises:
        StoppedError: a signal ended the block.
        LostError: another process of the job is gone.
    """
    try:
        yield
    except (SignalledError, StoppedError, LostError) as stop:
        interrupts.close()
        kill_children()  # a reader that hangs would keep the process from its end
        if isinstance(stop, StoppedError):
            raise
        if isinstance(stop, LostError):
            raise keeper.lost(stop) from stop
        raise keeper.at_once(stop.number) from None


def measured(
    state: RunState,
    keeper: Keeper,
    interrupts: Interrupts,
    measure: Callable[[], dict[str, float]],
    world: World,
) -> dict[str, float]:
    """Measure the finished run; a signal saves its state instead.

    Measuring may take long and changes nothing, so it is not waited for. What follows is short.

    Raises:
        StoppedError: a signal came.
    """
    after = world.first(lambda: _metrics_or_signal(interrupts, measure))
    if isinstance(after, int):
        keeper.stop(state, after)
    return after


def _metrics_or_signal(
    interrupts: Interrupts, measure: Callable[[], dict[str, float]]
) -> dict[str, float] | int:
    """Return the metrics, or the number of the signal that came before they were known."""
    try:
        interrupts.release()
        found: dict[str, float] | int = measure()
        interrupts.defer()
    except SignalledError as signalled:
        interrupts.defer()
        found = signalled.number
    return found
