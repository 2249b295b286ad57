"""What a sparsification method sees of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.sparsity.masks import Masks
from lpss_cli.training.clock import RunClock
from lpss_cli.training.sparse_weights import SparseWeights

#: Epoch → training batches (inputs, targets) of this process, the same for the same seed.
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
#: (outputs, targets) → scalar loss.
Loss = Callable[[Tensor, Tensor], Tensor]


class MethodContext:
    """What a method sees of a run, and all that it may use.

    Args:
        model: the network.
        sparse: its prunable weights.
        clock: finished and total steps.
        batches: see below.
        loss: see below.
        loss_scale: see below.
        distributed: the processes that share the training.

    Attributes:
        model: the network, on its device.
        optimizer: what ``Method.make_optimizer`` returned; absent in ``Method.prepare``.
        candidates: name → trainable Linear, Conv or attention weight, in module order.
        weights: name → weight that is pruned, a subset of the candidates.
        masks: name → bool tensor, True = kept; a masked weight is exactly 0.
        row_dims: name → dimension that counts neurons; None if rows are not simple slices.
        fan_ins: name → entries of one row; None if rows are not simple slices.
        epochs, steps_per_epoch, total_steps: length of the training.
        rng: generator of random masks, the same in all processes.
        batches: epoch → training batches (inputs, targets) of this process.
        loss: (outputs, targets) → scalar.
        loss_scale: factor on this process's mean loss; the mean over all processes is then the
            loss of the global batch. 1 where all have the same number of examples.
        from_checkpoint: whether the weights were trained before, so that they mean something.
        method_state: whatever the method keeps: plain containers and tensors, saved with the run.
        layer_info: name → what the method notes about a layer for the report, such as its p.
        notes: lines about what the method chose, for people and for the record.
    """

    optimizer: Optimizer

    def __init__(
        self,
        model: nn.Module,
        sparse: SparseWeights,
        clock: RunClock,
        *,
        batches: Batches,
        loss: Loss,
        loss_scale: float = 1.0,
        distributed: DistributedContext | None = None,
    ) -> None:
        self.model = model
        self._sparse, self._clock = sparse, clock
        self._distributed = distributed or DistributedContext()
        self.candidates, self.weights, self.masks = sparse.candidates, sparse.weights, sparse.masks
        self.row_dims, self.fan_ins = sparse.row_dims, sparse.fan_ins
        self.epochs, self.steps_per_epoch = clock.epochs, clock.steps_per_epoch
        self.total_steps, self.rng = clock.total_steps, clock.rng
        self.batches, self.loss, self.loss_scale = batches, loss, loss_scale
        self.from_checkpoint = False
        self.method_state: dict[str, Any] = {}
        self.layer_info: dict[str, dict[str, Any]] = {name: {} for name in sparse.candidates}
        self.notes: list[str] = []

    # How far the run has come.

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self._clock.step

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self._clock.epoch

    @property
    def progress(self) -> float:
        """Finished fraction of training, in [0, 1]."""
        return self._clock.progress

    @property
    def final_prune_step(self) -> int:
        """The step after which the masks are pruned to the target, then fixed."""
        return self._clock.final_prune_step

    @final_prune_step.setter
    def final_prune_step(self, step: int) -> None:
        self._clock.final_prune_step = step

    def is_update_step(self, begin: float, frequency: int) -> bool:
        """Return whether the masks are due for an update before the final pruning.

        Args:
            begin: fraction of training before the first update.
            frequency: steps between two updates.
        """
        return self._clock.is_update_step(begin, frequency)

    # What is sparse, and what is to be.

    @property
    def sparsity(self) -> float:
        """Target, zeros / prunable weights; at least the sparsity of a checkpoint's zeros."""
        return self._sparse.sparsity

    @property
    def start_sparsity(self) -> float:
        """Sparsity at the start of training."""
        return self._sparse.start_sparsity

    @property
    def targets(self) -> dict[str, float]:
        """Name → target sparsity of each candidate, as far as it is known before training."""
        return self._sparse.targets

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return self._sparse.total

    @property
    def masked(self) -> int:
        """Number of masked weights."""
        return self._sparse.masked

    # Masks.

    def select(self, sparsity: float, scores: Mapping[str, Tensor], ranking: str) -> Masks:
        """Return the masks that keep the best ``N - round(s·N)`` weights.

        See :meth:`SparseWeights.select`.
        """
        return self._sparse.select(sparsity, scores, ranking)

    def prune_to_sparsity(
        self, sparsity: float, scores: Mapping[str, Tensor], ranking: str
    ) -> None:
        """Keep the best ``N - round(s·N)`` weights and mask the others.

        Weights of neurons and inputs that had no gradient lately rank below all others.

        Args:
            sparsity: s, zeros / prunable weights.
            scores: name → log-saliency, of the weight's shape.
            ranking: one of ``masks.RANKINGS``.
        """
        activity = self._sparse.activity
        self.set_masks(self.select(sparsity, activity.demote(scores), ranking))
        activity.reset()

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Take new masks (True = kept) and, once there is an optimizer, apply them.

        Raises:
            RunError: another process has other masks.
        """
        self._sparse.set_masks(masks)
        self._distributed.check_equal(f"the masks after step {self.step:,}", {}, self.masks)
        if hasattr(self, "optimizer"):
            self.apply_masks()

    def random_masks(self, sparsity: float, ranking: str) -> None:
        """Mask exactly ``round(s·N)`` weights at random; those masked already stay masked.

        The ranking divides the budget among the layers, over scores drawn by ``rng``.
        """
        scores = {
            name: self.random_like(weight).masked_fill_(~self.masks[name], -math.inf)
            for name, weight in self.weights.items()
        }
        self.prune_to_sparsity(sparsity, scores, ranking)

    def apply_masks(self) -> None:
        """Zero the masked weights and their optimizer state, except state declared dormant."""
        self._sparse.apply_masks(self.optimizer)

    # Helpers.

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def random_like(self, weight: Tensor) -> Tensor:
        """Return uniform fp32 numbers in [0, 1) of a weight's shape, the same on every device."""
        return self._clock.random_like(weight)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all processes, in place."""
        self._distributed.average(tensors)

    def decay_groups(
        self, weight_decay: float, without: Iterable[Tensor] = ()
    ) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer, one with weight decay and one without.

        Parameters of two or more dimensions decay; biases and norms do not.

        Args:
            weight_decay: of the first group.
            without: parameters that are in neither group.
        """
        excluded = {id(p) for p in without}
        params = [p for p in self.model.parameters() if p.requires_grad and id(p) not in excluded]
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
