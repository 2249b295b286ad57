"""Where batches come from: tensors in memory, or a dataset streamed through workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lpss_cli.data.order import epoch_order
from lpss_cli.data.source import Augment, Augmenter, Batch, Source, check_batch_size
from lpss_cli.data.workers import Guarded, collate, worker_context, worker_init
from lpss_cli.errors import InputError, LpssError
from lpss_cli.utils.seeds import derive_seed

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
            Guarded(self.dataset),  # type: ignore[arg-type]  # map-style by its methods
            batch_size=batch_size,
            sampler=rows.tolist(),
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=drop_last,
            pin_memory=device.type == "cuda",
            worker_init_fn=worker_init,
            multiprocessing_context=worker_context() if self.workers else None,
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
