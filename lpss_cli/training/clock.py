"""How far a run has come, and the generator of its random masks."""

from __future__ import annotations

import torch
from torch import Tensor


class RunClock:
    """Finished steps and epochs of a run, those in total, and the generator of random masks.

    Args:
        epochs: epochs in total.
        steps_per_epoch: optimizer steps in each of them.
        seed: seed for random masks, the same in all processes of the run.

    Attributes:
        step, total_steps: finished steps, steps in total.
        epoch, epochs, steps_per_epoch: finished epochs, epochs in total, steps in each.
        final_prune_step: the step after which the masks are pruned to the target, then fixed.
        rng: generator of random masks.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, seed: int) -> None:
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = epochs * steps_per_epoch
        self.final_prune_step = self.total_steps
        self.step = 0
        self.epoch = 0
        self.rng = torch.Generator().manual_seed(seed)

    @property
    def progress(self) -> float:
        """Finished fraction of training, in [0, 1]."""
        return self.step / self.total_steps if self.total_steps else 1.0

    @property
    def step_in_epoch(self) -> int:
        """Finished steps of the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    def is_update_step(self, begin: float, frequency: int) -> bool:
        """Return whether the masks are due for an update before the final pruning.

        Args:
            begin: fraction of training before the first update.
            frequency: steps between two updates.
        """
        within = self.progress >= begin and 0 < self.step < self.final_prune_step
        return within and self.step % frequency == 0

    def random_like(self, weight: Tensor) -> Tensor:
        """Return uniform fp32 numbers in [0, 1) of a weight's shape, the same on every device."""
        drawn = torch.rand(weight.shape, generator=self.rng, dtype=torch.float32)
        return drawn.to(weight.device)
