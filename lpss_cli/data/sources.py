"""Sources of batches: tensors in memory, a streamed dataset, or a user's own DataLoader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lpss_cli.data.workers import ErrorCapturingDataset, collate, init_worker, worker_start_method
from lpss_cli.errors import InputError, LpssError
from lpss_cli.utils.seeds import derive_seed

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs (B, ...), a generator on their device) -> inputs of the same shape."""

Batch = tuple[Tensor, Tensor]
"""Inputs (B, ...) and targets (B, ...)."""


@dataclass(frozen=True)
class BatchOptions:
    """The arguments of :meth:`Source.batches`, with its augmentation ready for numbered batches."""

    size: int
    device: torch.device
    order: Tensor | None
    drop_last: bool
    seed: tuple[int, ...]
    augment: _Augmenter


class Source(ABC):
    """One split of the data."""

    @property
    @abstractmethod
    def labels(self) -> Tensor | None:
        """(N,) targets of all examples on the CPU, None if they are not known in advance."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Source:
        """Return a source of those examples alone: indices (n,) int64."""

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        order: Tensor | None = None,
        drop_last: bool = False,
        augment: Augment | None = None,
        seed: tuple[int, ...] = (0,),
    ) -> Iterator[Batch]:
        """Iterate over the examples once.

        Args:
            batch_size: examples per batch, >= 1; the last batch may be smaller.
            device: the device of the batches.
            order: (n,) int64 indices of examples (any subset, repeats allowed); None: all of
                them, in their natural order.
            drop_last: leave out a last batch that is not full.
            augment: applied to the inputs of each batch, with a generator on the device that
                is seeded with (*seed, index of the batch).
            seed: what the augmentation is a function of, usually (seed, epoch).

        Yields:
            (x, y): a batch that the caller may change in place.

        Raises:
            InputError: an impossible batch size, or an example that cannot be read.
        """
        device = torch.device(device)
        augmenter = _Augmenter(augment, device, seed)
        return self._iterate(BatchOptions(batch_size, device, order, drop_last, seed, augmenter))

    @abstractmethod
    def _iterate(self, options: BatchOptions) -> Iterator[Batch]:
        """Iterate over the examples once, see :meth:`batches`."""


class TensorSource(Source):
    """Examples held as tensors; an accelerator gets them once and keeps them.

    Args:
        x: (N, ...) preprocessed inputs, float32 (or int64 for tokens).
        y: (N, ...) targets, int64 or float32.
        prepare: applied to the inputs of each batch before augmentation, for a step that would
            take too much memory if it were applied to all of them at once (a resize).

    Raises:
        InputError: x and y of different lengths.
    """

    def __init__(
        self, x: Tensor, y: Tensor, prepare: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if len(x) != len(y):
            raise InputError(f"{len(x)} inputs but {len(y)} targets", "give one target per input")
        self.x, self.y, self.prepare = x, y, prepare
        self._moved: tuple[torch.device, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Tensor:
        """(N, ...) targets."""
        return self.y

    def subset(self, indices: Tensor) -> TensorSource:
        """Copy those examples: indices (n,) int64."""
        return TensorSource(self.x[indices], self.y[indices], self.prepare)

    def _iterate(self, options: BatchOptions) -> Iterator[Batch]:
        _check_batch_size(options.size)
        indices = torch.arange(len(self)) if options.order is None else options.order
        return self._select(indices.to(options.device), options)

    def _select(self, indices: Tensor, options: BatchOptions) -> Iterator[Batch]:
        x, y = self._tensors_on(indices.device)
        for number, batch in enumerate(torch.split(indices, options.size)):
            if not len(batch) or (options.drop_last and len(batch) < options.size):
                return
            # index_select copies even in natural order: a network that starts with an in-place
            # operation must not write into the data set.
            inputs = x.index_select(0, batch)
            if self.prepare is not None:
                inputs = self.prepare(inputs)
            yield options.augment(inputs, number), y.index_select(0, batch)

    def _tensors_on(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self.x, self.y
        if self._moved is None or self._moved[0] != device:
            self._moved = (device, self.x.to(device), self.y.to(device))
        return self._moved[1], self._moved[2]


class DatasetSource(Source):
    """A map-style dataset streamed through a DataLoader.

    Args:
        dataset: has ``__len__`` and ``__getitem__(int) -> (x, y)``; x a tensor or an array.
        workers: number of processes that read it; 0: this process.
        labels: (N,) targets if they are known in advance, for stratified splits.
        rows: (n,) int64 indices of the examples of this source; None: all.
    """

    def __init__(
        self,
        dataset: Any,
        workers: int = 0,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self.dataset, self.workers = dataset, workers
        self._labels = labels
        self._rows = torch.arange(len(dataset)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> Tensor | None:
        """(n,) targets, None if they are not known in advance."""
        return None if self._labels is None else self._labels[self._rows]

    def subset(self, indices: Tensor) -> DatasetSource:
        """Return a source of those examples alone, without a copy: indices (n,) int64."""
        return DatasetSource(self.dataset, self.workers, self._labels, self._rows[indices])

    def _iterate(self, options: BatchOptions) -> Iterator[Batch]:
        _check_batch_size(options.size)
        rows = self._rows if options.order is None else self._rows[options.order.cpu()]
        loader: DataLoader[Any] = DataLoader(
            ErrorCapturingDataset(self.dataset),  # type: ignore[arg-type]  # map-style by its methods
            batch_size=options.size,
            sampler=rows.tolist(),
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=options.drop_last,
            pin_memory=options.device.type == "cuda",
            worker_init_fn=init_worker,
            multiprocessing_context=worker_start_method() if self.workers else None,
            # Its own generator: an epoch of evaluation must not move torch's global one.
            generator=torch.Generator().manual_seed(derive_seed("workers", *options.seed)),
        )
        return self._read(loader, options)

    def _read(self, loader: DataLoader[Any], options: BatchOptions) -> Iterator[Batch]:
        for number, batch in enumerate(loader):
            if isinstance(batch, LpssError):
                raise batch
            x, y = (t.to(options.device, non_blocking=True) for t in batch)
            yield options.augment(x, number), y


class LoaderSource(Source):
    """A user's own DataLoader, taken as it is: its batches, its order, its workers.

    The seed of a run therefore does not decide the order; a seeded ``generator`` of the loader
    does.

    Args:
        loader: yields (x, y) and knows its number of batches.

    Attributes:
        loader: the same.
        batch_size: examples in its first batch.
        first: the first example as a batch of one.

    Raises:
        InputError: it does not know its length, or yields something else.
    """

    labels = None

    def __init__(self, loader: DataLoader[Any]) -> None:
        try:
            count = len(loader)
        except TypeError:
            raise InputError(
                "the loader does not know its number of batches",
                "give one over a map-style Dataset",
            ) from None
        batch: Any = next(iter(loader), ())
        if not _is_batch(batch):
            raise InputError(
                f"the loader yields {_kind(batch)}", "make every batch a pair (inputs, targets)"
            )
        self.loader = loader
        self.batch_size = len(batch[0])
        self.first: Batch = (batch[0][:1], batch[1][:1])
        self._examples = count * self.batch_size

    def __len__(self) -> int:
        return self._examples

    def subset(self, indices: Tensor) -> Source:
        """Raise an error: a loader cannot be split."""
        raise InputError("a loader cannot be split", "give the Dataset, or a pair of tensors")

    def _iterate(self, options: BatchOptions) -> Iterator[Batch]:
        """Iterate over the loader once; it decides on batch size, order and last batch itself.

        A sampler for several processes is told the epoch, the last number of the seed.
        """
        set_epoch = getattr(self.loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(options.seed[-1])
        device = options.device
        for number, (x, y) in enumerate(self.loader):
            yield options.augment(x.to(device, non_blocking=True), number), y.to(device)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is not positive", "give 1 or more")


class _Augmenter:
    """Apply an augmentation to numbered batches, each with its own seed."""

    def __init__(
        self, augment: Augment | None, device: torch.device, seed: tuple[int, ...]
    ) -> None:
        self._augment, self._seed = augment, seed
        self._generator = None if augment is None else torch.Generator(device=device)

    def __call__(self, x: Tensor, batch: int) -> Tensor:
        """Augment the inputs (B, ...) of the batch with that index."""
        if self._augment is None or self._generator is None:
            return x
        self._generator.manual_seed(derive_seed("augment", *self._seed, batch))
        return self._augment(x, self._generator)


def _is_batch(value: Any) -> bool:
    """Whether a value is a pair of tensors with a batch axis."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return is_pair and all(isinstance(part, Tensor) and part.dim() for part in value)


def _kind(value: Any) -> str:
    """Describe a wrong value for a message."""
    if isinstance(value, tuple) and not value:
        return "nothing"
    length = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"a {type(value).__name__}{length}"
