"""Joining the processes of a run, and reporting the error when one of them fails.

When one process fails, the others fail, too, because they have lost it, and ``torchrun`` ends all
of them as soon as one has ended. The first process to fail therefore prints its error, and the
others wait until it has. The store that ``torchrun`` keeps for them decides which one was first.
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

# One process may measure or write for a long time while the others wait.
_CONTROL_TIMEOUT = timedelta(days=7)
_FAILED, _REPORTED = "lpss failed", "lpss said"
# How long the others wait, so that the process that prints is not ended meanwhile.
_REPORT_TIMEOUT = timedelta(seconds=10)


class _Failure:
    """The failure of this process.

    Args:
        store: shared by all processes.

    Attributes:
        first: whether this process was the first to fail.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        try:
            self.first = store.add(_FAILED, 1) == 1
        except RuntimeError:  # the process that kept the store is gone
            self.first = True

    def reported(self) -> None:
        """Tell the others that the error was printed, or wait until the first process has."""
        with suppress(RuntimeError):
            if self.first:
                self._store.set(_REPORTED, "yes")
            else:
                self._store.wait([_REPORTED], _REPORT_TIMEOUT)


_failure: _Failure | None = None


@contextmanager
def joined(device: str) -> Iterator[DistributedContext]:
    """Join the processes that were started together, inside the block.

    Args:
        device: device, as for ``--device``; each of several processes takes a GPU of its own.

    Yields:
        This process's context, also if it is alone.

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

    process_device = _process_device(device, place)
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group(
            "nccl" if process_device.startswith("cuda") else "gloo",
            store=store,
            rank=rank,
            world_size=size,
        )
        control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"process {place.rank} of {place.size} cannot reach the others: "
            f"{one_line(error)[:200]}",
            "start them all with torchrun; it sets MASTER_ADDR and MASTER_PORT",
        ) from error
    assert not isinstance(control, int)  # an integer only in processes outside of the group
    try:
        yield ProcessGroupContext(process_device, place.local_rank, control)
    except BaseException:
        # torchrun sends SIGTERM as soon as any process has ended; little is left to do.
        signals.ignore_signals()
        _failure = _Failure(store)
        raise
    dist.destroy_process_group()


@contextmanager
def turn() -> Iterator[bool]:
    """Yield whether this process is to print the error of a run, inside the block."""
    if _failure is None:
        yield launch.place().rank == 0
        return
    try:
        yield _failure.first
    finally:
        _failure.reported()


def _process_device(device: str, place: launch.Place) -> str:
    """Return the device of this process.

    Raises:
        InputError: there are fewer GPUs than processes, or the device names one for all.
    """
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
            f"--device {device} does not work in several processes", "give --device cpu, or cuda"
        )
    if place.local_size > torch.cuda.device_count():
        raise InputError(
            f"{place.local_size} processes share {torch.cuda.device_count()} GPUs of this machine",
            f"start {max(1, torch.cuda.device_count())}, or give --device cpu",
        )
    torch.cuda.set_device(place.local_rank)
    return f"cuda:{place.local_rank}"
