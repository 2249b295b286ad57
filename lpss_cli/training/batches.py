"""The training batches of a run: their order, and each process's shard of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lpss_cli.data.splits import epoch_order, shard_order
from lpss_cli.distributed.context import DistributedContext

if TYPE_CHECKING:
    from lpss_cli.data import Data


class TrainingBatches:
    """Epoch → batches (inputs, targets) of this process, the same for the same seed.

    Args:
        data: only the training examples are used.
        batch_size: examples per step, over all processes; a smaller last batch is dropped.
        seed: seed for order and augmentation.
        model: batches are moved to its device.
        distributed: the processes that share every batch.

    Attributes:
        batch_size: examples per step, over all processes; at most all training examples.
        shard_size: examples per step in the process that has the fewest.
        steps_per_epoch: full batches in the training examples.
        loss_scale: factor on this process's mean loss; the mean over all processes is then the
            loss of the global batch. 1 where all have the same number of examples.

    Raises:
        InputError: a batch has fewer examples than there are processes.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int,
        model: nn.Module,
        distributed: DistributedContext,
    ) -> None:
        self.batch_size = min(batch_size, len(data.train))
        self.shard_size = self.batch_size // distributed.size
        self.steps_per_epoch = len(data.train) // self.batch_size
        self._begin, self._end = distributed.shard(self.batch_size)
        own_size = self._end - self._begin
        self.loss_scale = own_size * distributed.size / self.batch_size
        self._data, self._seed, self._model = data, seed, model
        # The order is the same in all processes; what each draws for its own examples is not.
        self._augment_seed = (seed,) if distributed.size == 1 else (seed, distributed.rank)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of one epoch, in its order."""
        train = self._data.train
        order = epoch_order(len(train), self._seed, epoch)
        return train.batches(
            self._end - self._begin,
            device=next(self._model.parameters()).device,
            order=shard_order(order, self.batch_size, self._begin, self._end),
            drop_last=True,
            augment=self._data.augment,
            seed=(*self._augment_seed, epoch),
        )


def no_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return no batch, for a run without training examples."""
    return iter(())
