"""What the processes of one run do together.

Every process holds the whole network and takes its part of each global batch. They stay alike
because all of them change it in the same way: from the same start, by the same gradients (means
over the global batch), by masks drawn from the same generator. Whoever trains alone is a
:class:`DistributedContext` of one, for which all of this is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lpss_cli.errors import InputError, RunError
from lpss_cli.utils import digest as manifest
from lpss_cli.utils.seeds import derive_seed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class LostError(RunError):
    """Another process of the run has ended, or cannot be reached any more."""


class DistributedContext:
    """A process alone; :class:`ProcessGroupContext` is one of several.

    Attributes:
        rank: number of this process, 0 for the one that writes and speaks.
        size: how many processes there are.
        device: what it trains on, as ``--device`` has it.
    """

    rank = 0
    size = 1

    def __init__(self, device: str = "auto") -> None:
        self.device = device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shard(self, count: int) -> tuple[int, int]:
        """Return which of the examples of a global batch are this process's: [begin, end).

        Raises:
            InputError: there is not one for every process.
        """
        if count < self.size:
            raise InputError(
                f"a batch of {count} is too small for {self.size} processes",
                f"give --batch-size from {self.size} up, or start fewer processes",
            )
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def seed(self, number: int) -> int:
        """Return the seed of what this process draws for its own examples; ``number`` if alone."""
        return number if self.is_main_process else derive_seed("process", number, self.rank)

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Let the first process call a function, and return what it gave, to all."""
        return function()

    def local_main_first(self, function: Callable[[], T]) -> T:
        """Call a function in every process; on each machine one does so before the others."""
        return function()

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        return [value]

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        return number

    def check_equal(
        self, what: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Make sure that plain containers and tensors are the same bits in all processes.

        Raises:
            RunError: they are not; ``what`` names them.
        """

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place."""

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their means; a missing one counts as zeros where another has it."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""


class ProcessGroupContext(DistributedContext):
    """One of several processes, connected by PyTorch's default process group.

    Args:
        device: what it trains on.
        local_rank: its number on this machine.
        control: a group whose messages travel on the CPU and may take their time.
    """

    def __init__(self, device: str, local_rank: int, control: ProcessGroup) -> None:
        import torch.distributed as dist

        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._local_rank, self._control, self._dist = local_rank, control, dist

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Say in our words that a message did not arrive.

        Raises:
            LostError: it did not.
        """
        try:
            yield
        except RuntimeError as error:  # PyTorch's own errors of this kind are all of it
            raise LostError(
                f"process {self.rank} of {self.size} has lost the others: one of them ended, or "
                "the connection broke",
                "start all of them again",
            ) from error

    def run_on_main(self, function: Callable[[], T]) -> T:
        """See :meth:`DistributedContext.first`; what is given must be picklable."""
        box = [function() if self.is_main_process else None]
        with self._together():
            self._dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]  # type: ignore[return-value]  # the first process's own

    def local_main_first(self, function: Callable[[], T]) -> T:
        """See :meth:`DistributedContext.local_main_first`."""
        early = self._local_rank == 0
        value = [function()] if early else []
        with self._together():
            self._dist.barrier(group=self._control)
        return value[0] if early else function()

    def all_gather(self, value: T) -> list[T]:
        """See :meth:`DistributedContext.gathered`; the values must be picklable."""
        found: list[Any] = [None] * self.size
        with self._together():
            self._dist.all_gather_object(found, value, group=self._control)
        return found

    def all_reduce_max(self, number: int) -> int:
        """See :meth:`DistributedContext.largest`."""
        box = torch.tensor(number)
        with self._together():
            self._dist.all_reduce(box, self._dist.ReduceOp.MAX, group=self._control)
        return int(box)

    def check_equal(
        self, what: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """See :meth:`DistributedContext.agree`: digests are compared."""
        own = {name: tensor.detach().cpu() for name, tensor in (tensors or {}).items()}
        digests = self.all_gather(manifest.record_digest(record, {"tensors": own}))
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise RunError(
                f"{what} differ between process 0 and process {', '.join(map(str, others))}",
                "run all of them with the same files, versions and kind of device",
            )

    def average(self, tensors: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.average`."""
        for group in _by_kind(tensors):
            for tensor, mean in zip(group, self._means(group), strict=True):
                tensor.copy_(mean)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.average_gradients`.

        A flag for each parameter travels along: a parameter without a gradient anywhere stays so,
        as it would in one process.
        """
        for group in _by_kind(p for p in parameters if p.requires_grad):
            there = [p.grad is not None for p in group]
            flags = torch.tensor(there, dtype=group[0].dtype).to(group[0].device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            *means, counts = self._means([*gradients, flags])
            for index, (parameter, mean) in enumerate(zip(group, means, strict=True)):
                if parameter.grad is not None:
                    parameter.grad.copy_(mean)
                elif bool(counts[index] > 0):
                    parameter.grad = mean.clone()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """See :meth:`DistributedContext.share`."""
        for group in _by_kind(tensors):
            flat = torch.cat([tensor.detach().flatten() for tensor in group])
            with self._together():
                self._dist.broadcast(flat, src=0)
            for tensor, shared in zip(group, _parts(flat, group), strict=True):
                tensor.detach().copy_(shared)

    def _means(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the means over all processes of tensors of one dtype and device."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with self._together():
            self._dist.all_reduce(flat)
        return _parts(flat.div_(self.size), tensors)


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sort tensors by dtype and device: each group travels as one message."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _parts(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Cut a flat tensor into the shapes of others."""
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
