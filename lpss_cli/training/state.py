"""RunState: what a method sees of a run, and what is saved with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.optim import state_dict as optimizerstate
from lpss_cli.sparsity.activity import Activity
from lpss_cli.sparsity.layer_targets import LayerBudgets
from lpss_cli.sparsity.masks import Masks, apply_mask_
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training.distillation import Teacher
from lpss_cli.training.sparse_weights import MaskedWeights
from lpss_cli.utils import seeds
from lpss_cli.utils.seeds import derive_seed

# Attribute → its key in a saved state, of all that is saved and restored as it is.
_SAVED = {
    "step": "step",
    "epoch": "epoch",
    "sparsity": "sparsity",
    "start_sparsity": "start_sparsity",
    "method_state": "memory",
    "layer_info": "facts",
    "history": "history",
    "epoch_seconds": "epoch_seconds",
}


class RunState(MaskedWeights):
    """One run: the model, its prunable weights and masks, the optimizer and the clock.

    Attributes, beside those of ``MaskedWeights``:
        model: the network, on its device.
        optimizer: made by the method after ``prepare``.
        start_sparsity: the sparsity training began with.
        from_checkpoint: whether the weights were trained before, so that they mean something.
        step, total_steps: finished steps, steps in all.
        epoch, epochs, steps_per_epoch: finished epochs, epochs in all.
        final_prune_step: the step of the exact cut; after it the masks are fixed.
        precision: of the forward and backward pass.
        batch_size: examples of a step; 0: not known.
        teacher: what is distilled from, if anything.
        memory: whatever the method keeps; plain containers and tensors, saved with the run.
        facts: name → what the method notes about a layer for the report, such as its p.
        activity: which neurons and inputs had a gradient lately.
        notes: lines about what the method chose by itself, for people and for the record.
        history: one record per finished epoch: loss, sparsity, mean Hoyer, the largest learning
            rate of its last step, seconds; the metric too where it was measured.
        loss_sum: sum of the losses of the present epoch's steps, on the model's device.
        epoch_seconds: time that the present epoch's finished steps took.
        rng: the generator of random masks, shared by all processes of a run.
        batches: training batches of an epoch, for methods that look at data in ``prepare``.
        loss: loss of outputs and targets.
        distributed: the processes that share the work.
        part: factor of this process's mean loss: the mean over all processes is then that of the
            global batch. 1 where all have as many examples.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Weight],
        skipped: Collection[str] = (),
        *,
        sparsity: float,
        layers: Sequence[str] = (),
        epochs: int,
        steps_per_epoch: int,
        seed: int,
        batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
        loss: Callable[[Tensor, Tensor], Tensor],
        distributed: DistributedContext | None = None,
    ) -> None:
        super().__init__(candidates, skipped, sparsity, layers)
        self.model = model
        self.optimizer: Optimizer
        self.start_sparsity = 0.0
        self.from_checkpoint = False
        self.step = 0
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = epochs * steps_per_epoch
        self.final_prune_step = self.total_steps
        self.precision = "fp32"
        self.batch_size = 0
        self.loss_scale = 1.0
        self.teacher: Teacher | None = None
        self.epoch = 0
        self.method_state: dict[str, Any] = {}
        self.layer_info: dict[str, dict[str, Any]] = {n: {} for n in self.candidates}
        self.notes: list[str] = []
        self.history: list[dict[str, float]] = []
        self.loss_sum = torch.zeros((), device=self.device)
        self.epoch_seconds = 0.0
        self.rng = torch.Generator().manual_seed(seed)
        self.batches = batches
        self.loss = loss
        self.distributed = distributed or DistributedContext()
        self.activity = Activity()
        self._any_masked = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def progress(self) -> float:
        """Finished part of training, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 1.0

    def is_update_step(self, begin: float, frequency: int) -> bool:
        """Whether the present step is one of a topology update before the exact cut."""
        within = self.progress >= begin and 0 < self.step < self.final_prune_step
        return within and self.step % frequency == 0

    def prune_to_sparsity(
        self, sparsity: float, scores: Mapping[str, Tensor], ranking: str
    ) -> None:
        """Set the masks that keep the best ``N - round(s·N)`` weights and enforce them."""
        self.set_masks(self.select(sparsity, self.activity.demote(scores), ranking))
        self.activity.reset()

    def set_masks(self, masks: Masks) -> None:
        """Take new masks (True = kept) and, once there is an optimizer, enforce them.

        Raises:
            RunError: another process has other masks.
        """
        for name, mask in masks.items():
            self.masks[name].copy_(mask)
        self.distributed.check_equal(f"the masks after step {self.step:,}", {}, self.masks)
        self._any_masked = self.masked > 0
        if hasattr(self, "optimizer"):
            self.enforce()

    def random_masks(self, sparsity: float, ranking: str) -> None:
        """Mask exactly ``round(s·N)`` weights at random; those that are masked already stay so.

        Every layer's budget follows from the ranking, over scores drawn by the shared generator.
        """
        scores = {
            name: self.random_like(weight).masked_fill_(~self.masks[name], -math.inf)
            for name, weight in self.weights.items()
        }
        self.prune_to_sparsity(sparsity, scores, ranking)

    def random_like(self, weight: Tensor) -> Tensor:
        """Uniform fp32 numbers in [0, 1), one per weight, the same on every device."""
        drawn = torch.rand(weight.shape, generator=self.rng, dtype=torch.float32)
        return drawn.to(weight.device)

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""
        if not self._any_masked:
            return
        for name, weight in self.weights.items():
            if weight.grad is not None:
                apply_mask_(weight.grad, self.masks[name])

    def mask_weights(self) -> None:
        """Zero the masked weights."""
        if not self._any_masked:
            return
        for name, weight in self.weights.items():
            apply_mask_(weight, self.masks[name])

    @torch.no_grad()
    def enforce(self) -> None:
        """Zero masked weights and all their optimizer state that is not declared dormant."""
        self.mask_weights()
        if not self._any_masked:
            return
        dormant = getattr(self.optimizer, "dormant", ())
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                same = isinstance(value, Tensor) and value.shape == weight.shape
                if same and key not in dormant:
                    apply_mask_(value, self.masks[name])

    def decay_groups(
        self, weight_decay: float, without: Iterable[Tensor] = ()
    ) -> list[dict[str, Any]]:
        """All trainable parameters except ``without``, as a group with decay and one without.

        Weights of two or more dimensions decay; biases and norms do not.
        """
        excluded = {id(p) for p in without}
        params = [p for p in self.model.parameters() if p.requires_grad and id(p) not in excluded]
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, as plain containers and tensors.

        All processes of a run make it together; that of the first one is for all.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizerstate.by_name(self.optimizer, self.model),
            "masks": self.masks,
            "start": asdict(self.start),
            "activity": self.activity.seen,
            "loss_sum": self.loss_sum,
            **{key: getattr(self, name) for name, key in _SAVED.items()},
            "rng": self.rng.get_state(),
            "randomness": self.distributed.all_gather(seeds.rng_state(self.device)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state of the same run; the optimizer must exist already.

        All tensors go to the model's device, wherever they were saved from.
        """
        state = copy.deepcopy(dict(state))  # it stays the caller's
        self.model.load_state_dict(state["model"])
        optimizerstate.restore(self.optimizer, self.model, state["optimizer"])
        for name, key in _SAVED.items():
            setattr(self, name, moved(state[key], self.device))
        for name, mask in state["masks"].items():
            self.masks[name].copy_(mask)
        self._any_masked = self.masked > 0
        self.start = LayerBudgets(
            **state.get("start", asdict(self.start))
        )  # older states have none
        self.budgets = replace(self.budgets, zeros=zero_count(self.total, self.sparsity))
        self.activity.seen = moved(state["activity"], self.device)
        self.loss_sum.copy_(state["loss_sum"])
        self.rng.set_state(state["rng"])
        self._restore_randomness(state["randomness"])

    def _restore_randomness(self, states: list[dict[str, Any]]) -> None:
        """Go back to the generators of each process, or to new ones for another number of them."""
        distributed = self.distributed
        if len(states) == distributed.size:
            seeds.restore_rng_state(states[distributed.rank], self.device)
        else:
            seeds.seed_everything(
                derive_seed("resumed", self.rng.initial_seed(), self.step, distributed.rank)
            )


def moved(value: Any, device: torch.device) -> Any:
    """Return nested containers with every tensor in them on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device) for part in value)
    return value
