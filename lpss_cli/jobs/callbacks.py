"""What a person sees of a job. Does not import PyTorch, so that short jobs need not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lpss_cli.training.callbacks import Callback


class JobCallback(Callback):
    """A callback that also sees what happens around the training loop."""

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """See the metrics of the input, before anything is trained."""

    def on_measured(self, metrics: dict[str, float], primary: str) -> None:
        """See the metrics after an epoch, before its ``on_epoch``."""

    def busy(self, text: str) -> AbstractContextManager[None]:
        """Return a context in which something takes its time without any progress."""
        return nullcontext()
