"""Communication between the processes of one run.

Every process holds the whole network and takes its shard of each global batch. The networks stay
equal because all processes change them in the same way: from the same start, by the same gradients
(means over the global batch), with masks drawn from the same generator. A process that trains alone
has a :class:`DistributedContext` of size 1, whose methods have nothing to do.

When one process fails, the others fail, too, because they have lost it, and ``torchrun`` ends all
of them as soon as one has ended. The first process to fail therefore prints its error, and the
others wait until it has. The store that ``torchrun`` keeps for them decides which one was first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lpss_cli.distributed import launch
from lpss_cli.errors import InputError, RunError, one_line
from lpss_cli.utils import digest, signals
from lpss_cli.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


class LostError(RunError):
    """Another process of the run has ended, or can no longer be reached."""


class DistributedContext:
    """A process that trains alone; :class:`ProcessGroupContext` is one of several.

    Args:
        device: device to train on, as for ``--device``.

    Attributes:
        rank: rank of this process, 0 for the main process.
        size: number of processes.
        device: device that this process trains on, as for ``--device``.
    """

    rank = 0
    size = 1

    def __init__(self, device: str = "auto") -> None:
        self.device = device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def shard(self, count: int) -> tuple[int, int]:
        """Return the range [begin, end) of this process's examples in a global batch.

        Args:
            count: examples in the global batch.

        Raises:
            InputError: there are fewer examples than processes.
        """
        if count < self.size:
            raise InputError(
                f"a batch of {count} is too small for {self.size} processes",
                f"give --batch-size from {self.size} up, or start fewer processes",
            )
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def seed(self, number: int) -> int:
        """Return the seed for what this process draws for its own examples.

        The main process keeps ``number``, so that a run of one process is the same as without.
        """
        return number if self.is_main_process else derive_seed("process", number, self.rank)

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process, and return its result in all processes."""
        return function()

    def local_main_first(self, function: Callable[[], T]) -> T:
        """Call a function in every process; on each machine, one calls it before the others."""
        return function()

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        return [value]

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the numbers of all processes."""
        return number

    def check_equal(
        self, what: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Check that plain containers and tensors have the same bits in all processes.

        Args:
            what: names them in the error.
            record: plain containers.
            tensors: name → tensor.

        Raises:
            RunError: they differ.
        """

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place."""

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their means over all processes.

        A gradient that is missing in some processes counts as zeros there.
        """

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the main process, in place."""


class ProcessGroupContext(DistributedContext):
    """One of several processes, connected by PyTorch's default process group.

    Args:
        device: device that this process trains on.
        local_rank: rank of this process on its machine.
        control: a group with a long timeout, whose messages stay on the CPU.
    """

    def __init__(self, device: str, local_rank: int, control: ProcessGroup) -> None:
        import torch.distributed as dist

        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._local_rank, self._control, self._dist = local_rank, control, dist

    @contextmanager
    def _communication(self) -> Iterator[None]:
        """Turn PyTorch's errors about lost processes into ours.

        Raises:
            LostError: a message did not arrive.
        """
        try:
            yield
        except RuntimeError as error:  # the base of all of PyTorch's errors of this kind
            raise LostError(
                f"process {self.rank} of {self.size} has lost the others: one of them ended, or "
                "the connection broke",
                "start all of them again",
            ) from error

    def run_on_main(self, function: Callable[[], T]) -> T:
        """See :meth:`DistributedContext.run_on_main`; the result must be picklable."""
        box = [function() if self.is_main_process else None]
        with self._communication():
            self._dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]  # type: ignore[return-value]  # the main process's result

    def local_main_first(self, function: Callable[[], T]) -> T:
        """See :meth:`DistributedContext.local_main_first`."""
        is_first = self._local_rank == 0
        value = [function()] if is_first else []
        with self._communication():
            self._dist.barrier(group=self._control)
        return value[0] if is_first else function()

    def all_gather(self, value: T) -> list[T]:
        """See :meth:`DistributedContext.all_gather`; the values must be picklable."""
        values: list[Any] = [None] * self.size
        with self._communication():
            self._dist.all_gather_object(values, value, group=self._control)
        return values

    def all_reduce_max(self, number: int) -> int:
        """See :meth:`DistributedContext.all_reduce_max`."""
        box = torch.tensor(number)
        with self._communication():
            self._dist.all_reduce(box, self._dist.ReduceOp.MAX, group=self._control)
        return int(box)

    def check_equal(
        self, what: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """See :meth:`DistributedContext.check_equal`: digests are compared."""
        copies = {name: tensor.detach().cpu() for name, tensor in (tensors or {}).items()}
        digests = self.all_gather(digest.record_digest(record, {"tensors": copies}))
        others = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            raise RunError(
                f"{what} differ between process 0 and process {', '.join(map(str, others))}",
                "run all of them with the same files, versions and kind of device",
            )

    def average(self, tensors: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.average`."""
        for group in _by_dtype_and_device(tensors):
            for tensor, mean in zip(group, self._means(group), strict=True):
                tensor.copy_(mean)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.average_gradients`.

        A flag for each parameter is averaged, too: a parameter that has no gradient in any process
        gets none, as in a single process.
        """
        for group in _by_dtype_and_device(p for p in parameters if p.requires_grad):
            has_gradient = [p.grad is not None for p in group]
            flags = torch.tensor(has_gradient, dtype=group[0].dtype).to(group[0].device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            *means, counts = self._means([*gradients, flags])
            for index, (parameter, mean) in enumerate(zip(group, means, strict=True)):
                if parameter.grad is not None:
                    parameter.grad.copy_(mean)
                elif bool(counts[index] > 0):
                    parameter.grad = mean.clone()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.broadcast`."""
        for group in _by_dtype_and_device(tensors):
            flat = torch.cat([tensor.detach().flatten() for tensor in group])
            with self._communication():
                self._dist.broadcast(flat, src=0)
            for tensor, received in zip(group, _parts(flat, group), strict=True):
                tensor.detach().copy_(received)

    def _means(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the means over all processes, of tensors of one dtype and device."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with self._communication():
            self._dist.all_reduce(flat)
        return _parts(flat.div_(self.size), tensors)


def _by_dtype_and_device(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype and device; each group is sent as one message."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _parts(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Split a flat tensor into tensors of the shapes of others."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


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
