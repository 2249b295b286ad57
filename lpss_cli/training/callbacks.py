"""Seeing a run go by, without taking part in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpss_cli.training.state import RunState


class Callback:
    """Sees a run go by; every method does nothing by default."""

    def on_start(self, run: RunState) -> None:
        """Before the first step."""

    def on_step(self, run: RunState) -> None:
        """After every step; reading tensors here slows a GPU down."""

    def on_epoch(self, run: RunState) -> None:
        """After every epoch; ``run.history[-1]`` is its record."""

    def on_prune(self, run: RunState) -> None:
        """Before the exact cut: the weights are as trained so far."""

    def on_note(self, text: str) -> None:
        """A choice that was made for the user: network, data, a method's settings."""

    def on_warning(self, text: str) -> None:
        """Something the user should know that is no error."""


class CallbackWrapper(Callback):
    """Passes on all it sees; override what is to be added.

    Args:
        inner: the callback that sees everything.
    """

    def __init__(self, inner: Callback) -> None:
        self._inner = inner

    def on_start(self, run: RunState) -> None:
        """Pass it on."""
        self._inner.on_start(run)

    def on_step(self, run: RunState) -> None:
        """Pass it on."""
        self._inner.on_step(run)

    def on_epoch(self, run: RunState) -> None:
        """Pass it on."""
        self._inner.on_epoch(run)

    def on_prune(self, run: RunState) -> None:
        """Pass it on."""
        self._inner.on_prune(run)

    def on_note(self, text: str) -> None:
        """Pass it on."""
        self._inner.on_note(text)

    def on_warning(self, text: str) -> None:
        """Pass it on."""
        self._inner.on_warning(text)
