"""Becoming one of several processes, and what they say when one of them fails.

``torchrun`` ends the others as soon as one process has ended, and when one fails, the others fail
too: they have lost it. So the first to fail is the one that speaks, and the others wait until it
has spoken. Who was first is decided by the store that ``torchrun`` keeps for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lpss_cli.distributed import launch
from lpss_cli.distributed.context import DistributedContext, ProcessGroupContext
from lpss_cli.errors import InputError, RunError, one_line
from lpss_cli.utils import signals

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# One process may measure or write for long while the others wait.
_PATIENCE = timedelta(days=7)
_FAILED, _SAID = "lpss failed", "lpss said"
# How long the others stay, so that the one that speaks is not ended meanwhile.
_SPEECH = timedelta(seconds=10)


class _Failure:
    """That this process has failed, and whether it was the first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        try:
            self.first = store.add(_FAILED, 1) == 1
        except RuntimeError:  # whoever kept the store is gone
            self.first = True

    def said(self) -> None:
        """Tell the others that it has been said, or wait until the first has."""
        with suppress(RuntimeError):
            if self.first:
                self._store.set(_SAID, "yes")
            else:
                self._store.wait([_SAID], _SPEECH)


_failure: _Failure | None = None


@contextmanager
def joined(device: str) -> Iterator[DistributedContext]:
    """Make this process one of those that were started together, inside the block.

    Args:
        device: as ``--device`` has it; each process of several takes a GPU of its own.

    Raises:
        InputError: there are fewer GPUs than processes, or the device names one for all.
        RunError: the others cannot be reached.
    """
    global _failure
    place = launch.place()
    if place.size == 1:
        yield DistributedContext(device)
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    own = _own_device(device, place)
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "nccl" if own.startswith("cuda") else "gloo", store=store, rank=rank, world_size=size
        )
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"process {place.rank} of {place.size} cannot reach the others: "
            f"{one_line(error)[:200]}",
            "start them all with torchrun; it sets MASTER_ADDR and MASTER_PORT",
        ) from error
    assert not isinstance(control, int)  # only for processes that are not in the group
    try:
        yield ProcessGroupContext(own, place.local_rank, control)
    except BaseException:
        # torchrun sends SIGTERM as soon as any process has ended; what is left to do is short.
        signals.ignore_signals()
        _failure = _Failure(store)
        raise
    dist.destroy_process_group()


@contextmanager
def turn() -> Iterator[bool]:
    """Say whether this process is to print the error of a run; it does so inside the block."""
    if _failure is None:
        yield launch.place().rank == 0
        return
    try:
        yield _failure.first
    finally:
        _failure.said()


def _own_device(device: str, place: launch.Place) -> str:
    """Return this process's device."""
    kind, _, index = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if index:
        raise InputError(
            f"--device {device} is one device for {place.size} processes", f"give --device {kind}"
        )
    if kind == "cpu":
        return "cpu"
    if kind != "cuda":
        raise InputError(
            f"--device {device} is not shared by processes", "give --device cpu, or cuda"
        )
    if place.local_size > torch.cuda.device_count():
        raise InputError(
            f"{place.local_size} processes share {torch.cuda.device_count()} GPUs of this machine",
            f"start {max(1, torch.cuda.device_count())}, or give --device cpu",
        )
    torch.cuda.set_device(place.local_rank)
    return f"cuda:{place.local_rank}"
