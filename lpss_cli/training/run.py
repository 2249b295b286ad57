"""One training run: its clock, what a method sees of it, and all that is saved with it.

Three classes, each of which adds to the one before: :class:`RunClock` counts steps and draws random
masks, :class:`MethodContext` is what a sparsification method may use, and :class:`Run` adds what
callbacks and users see.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.errors import RunError
from lpss_cli.optim import state_dict as optimizer_state
from lpss_cli.sparsity.layer_targets import LayerBudgets
from lpss_cli.sparsity.masks import Masks
from lpss_cli.training.sparse_weights import SparseWeights
from lpss_cli.utils import seeds
from lpss_cli.utils.seeds import derive_seed

#: Epoch → training batches (inputs, targets) of this process, the same for the same seed.
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
#: (outputs, targets) → scalar loss.
Loss = Callable[[Tensor, Tensor], Tensor]


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


class Run(MethodContext):
    """One training run, as callbacks and users see it.

    Args:
        batch_size: see below.

    Attributes, beside those of :class:`MethodContext`:
        batch_size: examples per step, over all processes; 0 if unknown.
        history: one record per finished epoch: loss, sparsity, mean Hoyer, the largest learning
            rate of the last step and seconds; the metric, too, if it was measured.
        loss_sum: sum of the losses of the current epoch's steps, on the model's device.
        epoch_seconds: duration of the current epoch's finished steps.
    """

    def __init__(
        self,
        model: nn.Module,
        sparse: SparseWeights,
        clock: RunClock,
        *,
        batches: Batches,
        loss: Loss,
        loss_scale: float = 1.0,
        batch_size: int,
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__(
            model,
            sparse,
            clock,
            batches=batches,
            loss=loss,
            loss_scale=loss_scale,
            distributed=distributed,
        )
        self.batch_size = batch_size
        self.history: list[dict[str, float]] = []
        self.loss_sum = torch.zeros((), device=self.device)
        self.epoch_seconds = 0.0

    @property
    def prunes_at_end(self) -> bool:
        """Whether the final pruning follows the last step, so that no training recovers from it."""
        pruning = self.sparsity > self.start_sparsity
        return pruning and 0 < self.final_prune_step == self.total_steps

    @property
    def cut_step(self) -> int:
        """Deprecated name of ``final_prune_step``."""
        warnings.warn("cut_step is now final_prune_step", DeprecationWarning, stacklevel=2)
        return self.final_prune_step

    def check_loss(self) -> None:
        """Check that the loss is still finite.

        Raises:
            RunError: the sum of the current epoch's losses is not.
        """
        # All processes continue from the mean.
        self._distributed.average([self.loss_sum])
        total = float(self.loss_sum)
        if not math.isfinite(total):
            raise RunError(
                f"the loss is {total} in epoch {self.epoch + 1}, before step {self.step}",
                "lower --lr (and --eta); no file was written and the input is as it was",
            )

    def follow_model(self) -> bool:
        """Move masks and the method's tensors to the model's device; return whether it had moved.

        The optimizer's state is not moved.
        """
        if all(mask.device == self.weights[name].device for name, mask in self.masks.items()):
            return False
        for name, weight in self.weights.items():
            self.masks[name] = self.masks[name].to(weight.device)
        self.method_state = to_device(self.method_state, self.device)
        self._sparse.activity.seen = to_device(self._sparse.activity.seen, self.device)
        self.loss_sum = self.loss_sum.to(self.device)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the run continues, as plain containers and tensors.

        All processes of a run call it together. The first process's result serves all of them.
        """
        start = self._sparse.start
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_state.by_name(self.optimizer, self.model),
            "masks": self.masks,
            "start": {
                "zeros": start.zeros,
                "own": dict(start.layer_zeros),
                "others": start.other_weights,
            },
            "activity": self._sparse.activity.seen,
            "loss_sum": self.loss_sum,
            "step": self.step,
            "epoch": self.epoch,
            "sparsity": self.sparsity,
            "start_sparsity": self.start_sparsity,
            # The keys of the two are older than their names.
            "memory": self.method_state,
            "facts": self.layer_info,
            "history": self.history,
            "epoch_seconds": self.epoch_seconds,
            "rng": self.rng.get_state(),
            "randomness": self._distributed.all_gather(seeds.rng_state(self.device)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state of the same run; the optimizer must exist already.

        Tensors are moved to the model's device, whichever device they were saved from.
        """
        state = copy.deepcopy(dict(state))  # the caller keeps its own
        self.model.load_state_dict(state["model"])
        optimizer_state.restore(self.optimizer, self.model, state["optimizer"])
        start = None  # as in states of old versions
        if "start" in state:
            zeros, own, others = (state["start"][key] for key in ("zeros", "own", "others"))
            start = LayerBudgets(zeros, own, others)
        self._sparse.restore(state["masks"], state["sparsity"], state["start_sparsity"], start)
        self._sparse.activity.seen = to_device(state["activity"], self.device)
        self._clock.step, self._clock.epoch = state["step"], state["epoch"]
        self.method_state = to_device(state["memory"], self.device)
        self.layer_info = to_device(state["facts"], self.device)
        self.history, self.epoch_seconds = state["history"], state["epoch_seconds"]
        self.loss_sum.copy_(state["loss_sum"])
        self.rng.set_state(state["rng"])
        self._restore_rng(state["randomness"])

    def _restore_rng(self, states: list[dict[str, Any]]) -> None:
        """Restore the global generators of this process.

        A run that continues in another number of processes gets new ones.
        """
        distributed = self._distributed
        if len(states) == distributed.size:
            seeds.restore_rng_state(states[distributed.rank], self.device)
        else:
            seeds.seed_everything(
                derive_seed("resumed", self.rng.initial_seed(), self.step, distributed.rank)
            )


def to_device(value: Any, device: torch.device) -> Any:
    """Return nested containers with every tensor in them on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(part, device) for part in value)
    return value
