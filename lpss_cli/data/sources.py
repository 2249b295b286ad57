"""Where batches come from: tensors in memory, or a dataset streamed through workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lpss_cli.data.splits import epoch_order
from lpss_cli.data.workers import ErrorCapturingDataset, collate, init_worker, worker_start_method
from lpss_cli.errors import InputError, LpssError
from lpss_cli.utils.seeds import derive_seed

# MERGED: What a source of batches is, and how its batches are augmented.
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs (B, ...), a generator on their device) -> inputs of the same shape."""

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class Source(Protocol):
    """One split of the data."""

    @property
    def labels(self) -> Tensor | None:
        """(N,) targets of all examples on the CPU, None where they are not known in advance."""

    def __len__(self) -> int: ...

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
        """Go once through the examples.

        Args:
            batch_size: examples per batch, >= 1; the last batch may be smaller.
            device: where the batches are wanted.
            order: (n,) int64 indices of examples (any subset, repeats allowed); None: all of
                them, in their natural order.
            drop_last: leave out a last batch that is not full.
            augment: applied to the inputs of each batch, with a generator on the device that
                is seeded from (*seed, number of the batch).
            seed: what the augmentation is a function of, usually (seed, epoch).

        Yields:
            (x, y): a batch of one's own, free to be changed in place.

        Raises:
            InputError: an impossible batch size, or an example that cannot be read.
        """

    def subset(self, indices: Tensor) -> Source:
        """Return the source of those examples alone: indices (n,) int64."""


def check_batch_size(batch_size: int) -> None:
    """Refuse batches without examples."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is not positive", "give 1 or more")


class Augmenter:
    """Applies an augmentation to numbered batches, each with its own seed."""

    def __init__(self, augment: Augment | None, device: torch.device, seed: tuple[int, ...]):
        self._augment, self._seed = augment, seed
        self._generator = None if augment is None else torch.Generator(device=device)

    def __call__(self, x: Tensor, batch: int) -> Tensor:
        """Augment inputs (B, ...) of the batch with that number."""
        if self._augment is None or self._generator is None:
            return x
        self._generator.manual_seed(derive_seed("augment", *self._seed, batch))
        return self._augment(x, self._generator)


__all__ = ["Augment", "DatasetSource", "Source", "TensorSource", "epoch_order"]


class TensorSource:
    """Examples held as tensors; for an accelerator they are moved there once and kept.

    Args:
        x: (N, ...) preprocessed inputs, float32 (or int64 for tokens).
        y: (N, ...) targets, int64 or float32.
        prepare: applied to the inputs of each batch before augmentation, for what would take
            too much memory if it were done to all of them (a resize).

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
        """Go once through the examples, see :meth:`Source.batches`."""
        check_batch_size(batch_size)
        device = torch.device(device)
        augmenter = Augmenter(augment, device, seed)
        rows = torch.arange(len(self)) if order is None else order
        return self._iterate(rows.to(device), batch_size, drop_last, augmenter)

    def _iterate(
        self, rows: Tensor, batch_size: int, drop_last: bool, augmenter: Augmenter
    ) -> Iterator[Batch]:
        x, y = self._on(rows.device)
        for number, chosen in enumerate(torch.split(rows, batch_size)):
            if not len(chosen) or (drop_last and len(chosen) < batch_size):
                return
            # index_select copies even in natural order: a network that starts with an in-place
            # operation must not write into the data set.
            inputs = x.index_select(0, chosen)
            if self.prepare is not None:
                inputs = self.prepare(inputs)
            yield augmenter(inputs, number), y.index_select(0, chosen)

    def _on(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self.x, self.y
        if self._moved is None or self._moved[0] != device:
            self._moved = (device, self.x.to(device), self.y.to(device))
        return self._moved[1], self._moved[2]


class DatasetSource:
    """A map-style dataset streamed through a DataLoader.

    Args:
        dataset: has ``__len__`` and ``__getitem__(int) -> (x, y)``; x a tensor or an array.
        workers: processes that read it, 0 = this process.
        labels: (N,) targets where they are known in advance, for stratified splits.
        rows: (n,) int64 examples that this source consists of; None: all.
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
        """(n,) targets, None where they are not known in advance."""
        return None if self._labels is None else self._labels[self._rows]

    def subset(self, indices: Tensor) -> DatasetSource:
        """Return the source of those examples alone: indices (n,) int64; copies nothing."""
        return DatasetSource(self.dataset, self.workers, self._labels, self._rows[indices])

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
        """Go once through the examples, see :meth:`Source.batches`."""
        check_batch_size(batch_size)
        device = torch.device(device)
        rows = self._rows if order is None else self._rows[order.cpu()]
        loader: DataLoader[Any] = DataLoader(
            ErrorCapturingDataset(self.dataset),  # type: ignore[arg-type]  # map-style by its methods
            batch_size=batch_size,
            sampler=rows.tolist(),
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=drop_last,
            pin_memory=device.type == "cuda",
            worker_init_fn=init_worker,
            multiprocessing_context=worker_start_method() if self.workers else None,
            # Its own generator: an epoch of evaluation must not move torch's global one.
            generator=torch.Generator().manual_seed(derive_seed("workers", *seed)),
        )
        return self._iterate(loader, device, Augmenter(augment, device, seed))

    def _iterate(
        self, loader: DataLoader[Any], device: torch.device, augmenter: Augmenter
    ) -> Iterator[Batch]:
        for number, batch in enumerate(loader):
            if isinstance(batch, LpssError):
                raise batch
            x, y = (t.to(device, non_blocking=True) for t in batch)
            yield augmenter(x, number), y


# MERGED: A user's own DataLoader as a source of batches.
class LoaderSource:
    """Goes through a loader as it is: its batches, its order, its workers.

    So the seed of a run does not decide the order; a seeded ``generator`` of the loader does.

    Args:
        loader: yields (x, y) and knows its number of batches.

    Raises:
        InputError: it does not know its length, or yields something else.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        try:
            count = len(loader)
        except TypeError:
            raise InputError(
                "the loader does not know its number of batches",
                "give one over a map-style Dataset",
            ) from None
        first: Any = next(iter(loader), ())
        if not _is_pair(first):
            raise InputError(
                f"the loader yields {_kind(first)}", "let every batch be a pair (inputs, targets)"
            )
        self.loader = loader
        self.batch_size = len(first[0])
        self.first: Batch = (first[0][:1], first[1][:1])
        self._examples = count * self.batch_size

    labels = None

    def __len__(self) -> int:
        return self._examples

    def subset(self, indices: Tensor) -> Source:
        """Refuse: a loader cannot be split."""
        raise InputError("a loader cannot be split", "give the Dataset, or a pair of tensors")

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
        """Go once through the loader; ``batch_size``, ``order`` and ``drop_last`` are its own.

        A sampler of several processes is told the epoch, the last number of the seed.
        """
        set_epoch = getattr(self.loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(seed[-1])
        augmenter = Augmenter(augment, torch.device(device), seed)
        for number, (x, y) in enumerate(self.loader):
            yield augmenter(x.to(device, non_blocking=True), number), y.to(device)


def _is_pair(batch: Any) -> bool:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    return pair and all(isinstance(part, Tensor) and part.dim() for part in batch)


def _kind(value: Any) -> str:
    if isinstance(value, tuple) and not value:
        return "nothing"
    length = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"a {type(value).__name__}{length}"
