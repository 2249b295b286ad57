"""One training run: what callbacks and users see of it, and what is saved with it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.errors import RunError
from lpss_cli.optim import state_dict as optimizer_state
from lpss_cli.sparsity.layer_targets import LayerBudgets
from lpss_cli.training.clock import RunClock
from lpss_cli.training.context import Batches, Loss, MethodContext
from lpss_cli.training.sparse_weights import SparseWeights
from lpss_cli.utils import seeds
from lpss_cli.utils.seeds import derive_seed


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
