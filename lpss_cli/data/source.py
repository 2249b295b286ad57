"""What a source of batches is, and how its batches are augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.utils.seeds import derive_seed

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
