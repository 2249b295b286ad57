"""A user's own DataLoader as a source of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lpss_cli.data.source import Augment, Augmenter, Batch, Source
from lpss_cli.errors import InputError


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
