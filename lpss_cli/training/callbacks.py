"""Callbacks: they watch a run, and take no part in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpss_cli.training.run import Run


class Callback:
    """Watches a run; every method does nothing by default."""

    def on_start(self, run: Run) -> None:
        """Called before the first step."""

    def on_step(self, run: Run) -> None:
        """Called after every step; reading a tensor here makes a GPU wait."""

    def on_epoch(self, run: Run) -> None:
        """Called after every epoch; ``run.history[-1]`` is its record."""

    def before_final_prune(self, run: Run) -> None:
        """Called before the final pruning: the weights are as trained so far."""

    def on_note(self, text: str) -> None:
        """Called with a choice made for the user: network, data, a method's settings."""

    def on_warning(self, text: str) -> None:
        """Called with what the user should know although it is not an error."""


class CallbackList(Callback):
    """Calls several callbacks, in order.

    Args:
        callbacks: the first one is called first.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)

    def on_start(self, run: Run) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.on_start(run)

    def on_step(self, run: Run) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.on_step(run)

    def on_epoch(self, run: Run) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.on_epoch(run)

    def before_final_prune(self, run: Run) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.before_final_prune(run)

    def on_note(self, text: str) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.on_note(text)

    def on_warning(self, text: str) -> None:
        """Call every callback."""
        for callback in self._callbacks:
            callback.on_warning(text)
