"""The trainer: the one training loop behind every command and the Python interface."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lpss_cli.data.tasks import CLASSIFICATION
from lpss_cli.distributed.context import DistributedContext
from lpss_cli.errors import InputError
from lpss_cli.sparsity import activity
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training import distillation
from lpss_cli.training.batches import TrainingBatches, no_batches
from lpss_cli.training.batchnorm import RECALIBRATION_BATCHES, recalibrate_batchnorm
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.distillation import Teacher
from lpss_cli.training.method import Method
from lpss_cli.training.run import Run, RunClock
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.sparse_weights import SparseWeights, choose_weights
from lpss_cli.utils import seeds, torch_utils

if TYPE_CHECKING:
    from lpss_cli.data import Data

# Steps between two checks of the loss: reading it makes a GPU wait.
_LOSS_CHECK_STEPS = 50


class Trainer:
    """Trains a network in place and leaves exactly the zeros that were asked for.

    ``Trainer(model, data, method, settings).train()`` is a whole run. For a training loop outside
    of the trainer, such as that of :class:`lpss_cli.Sparsifier`, call :meth:`prepare` once,
    :meth:`before_step` and :meth:`after_step` around every step of the optimizer, and
    :meth:`finish` at the end.

    Args:
        model: the network; its weights are the start.
        data: training examples; the test examples are never touched. None: a loop outside of the
            trainer that shows it no examples.
        method: decides when which weights are pruned.
        settings: length, batch size, seed and target.
        steps: optimizer steps of a loop outside of the trainer; None: the epochs of ``data``.
        device: where to train; the model stays there. None leaves the model as it is.
        callback: watches the run.
        teacher: network to distill from, if the settings ask for distillation; None: the network
            as it is now.
        distributed: the processes that share the training; None: this one alone.

    Attributes:
        run: what methods and callbacks see: weights, masks, steps, history.

    Raises:
        InputError: a pattern matches nothing, the target leaves no weight, or the network or the
            batch size cannot be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        method: Method,
        settings: TrainingSettings,
        *,
        steps: int | None = None,
        device: torch.device | str | None = "cpu",
        callback: Callback | None = None,
        teacher: nn.Module | None = None,
        distributed: DistributedContext | None = None,
    ) -> None:
        self._model, self._method, self._settings = model, method, settings
        self._callback = callback or Callback()
        self._distributed = distributed or DistributedContext()
        if device is not None:
            model.to(device)
            torch_utils.to_channels_last(model)
        batches = None
        if data is not None:
            batches = TrainingBatches(
                data, settings.batch_size, settings.seed, model, self._distributed
            )
        candidates, skipped = choose_weights(
            model, settings.sparsity, settings.skip, self._callback.on_warning
        )
        _check_trainable(model, batches.shard_size if batches else settings.batch_size, settings)
        self._distributed.broadcast(chain(model.parameters(), model.buffers()))
        self._sparse = SparseWeights(candidates, skipped, settings.sparsity, settings.layers)
        if steps is None:
            assert batches is not None  # what else would be trained on
            steps = batches.steps_per_epoch
        self._clock = RunClock(settings.epochs, steps, settings.seed)
        task = CLASSIFICATION if data is None else data.task
        self.run = Run(
            model,
            self._sparse,
            self._clock,
            batches=batches or no_batches,
            loss=task.loss,
            loss_scale=batches.loss_scale if batches else 1.0,
            batch_size=batches.batch_size if batches else 0,
            distributed=self._distributed,
        )
        self._teacher: Teacher | None = None
        if settings.distill:
            distillation.check_task(task)
            self._teacher = distillation.teacher_of(
                model if teacher is None else teacher.to(self.run.device),
                settings.distill,
                settings.temperature,
                settings.precision,
            )

    def train(self, resume: Mapping[str, Any] | None = None) -> Run:
        """Train from the start, or from a saved state, to exactly the zeros that were asked for.

        Args:
            resume: ``Run.state_dict()`` of the same run.

        Returns:
            The finished run: masks, history, what the method noted about each layer.

        Raises:
            RunError: the loss is not finite, the number of zeros is not the one asked for, or
                another process has other masks.
        """
        run = self.run
        torch.manual_seed(self._distributed.seed(self._settings.seed))  # for dropout
        self.prepare()
        if resume is not None:
            run.load_state_dict(resume)
        for text in run.notes:
            self._callback.on_note(text)
        self._callback.on_start(run)
        if run.total_steps == 0:
            self.final_prune()
        # Count epochs: a state saved after an epoch's last step has the epoch's end ahead of it.
        while run.epoch < run.epochs:
            self._train_epoch()
        self.finish()
        torch_utils.to_contiguous(self._model)
        return run

    def _train_epoch(self) -> None:
        """Train one epoch, or the rest of it. Each pass through the loop is one step."""
        run, optimizer = self.run, self.run.optimizer
        began = time.perf_counter() - run.epoch_seconds
        self._model.train()
        for x, y in self._remaining_batches():
            self.set_learning_rates()
            optimizer.zero_grad(set_to_none=True)
            loss = self._compute_loss(x, y)
            loss.backward()
            self._distributed.average_gradients(self._model.parameters())
            if self.before_step():  # the method sees dense gradients; then they are masked
                optimizer.step()
            run.loss_sum += loss.detach()
            self.after_step()  # weights are masked; then the masks are updated
            run.epoch_seconds = time.perf_counter() - began
            self._callback.on_step(run)
            if run.step % _LOSS_CHECK_STEPS == 0:
                run.check_loss()
        run.check_loss()
        self._end_epoch(began)

    def prepare(self, optimizer: Optimizer | None = None) -> None:
        """Make the run ready for its first step: initial masks, the optimizer, the final pruning.

        Args:
            optimizer: takes the place of the method's own, with its own learning rates.

        Raises:
            InputError: a layer has more zeros already than its target asks for.
        """
        run, method = self.run, self._method
        run.from_checkpoint = self._settings.keep_zeros
        run.final_prune_step = max(1, math.floor(method.config.end * run.total_steps))
        if self._settings.keep_zeros:
            self._inherit_zeros()
        run.notes += self._sparse.budgets.notes(self._sparse.sizes)
        method.prepare(run)
        if optimizer is not None:
            run.optimizer = optimizer
        else:
            run.optimizer = method.make_optimizer(run)
            for group in run.optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        run.apply_masks()

    def set_learning_rates(self) -> None:
        """Set the learning rate of every parameter group for the coming step."""
        scale = self._method.lr_scale(self.run)
        for group in self.run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale

    def before_step(self) -> bool:
        """Show the method the dense gradients, then mask and clip them.

        Returns:
            Whether the optimizer is to take its step.
        """
        if self._update_is_near():
            self._sparse.activity.update(self._sparse.weights)
        take_step = self._method.on_gradients(self.run)
        self._sparse.mask_gradients()
        if self._method.config.clip:
            # Without clipping, a network without BatchNorm diverges in its first steps at
            # learning rates that suit it later.
            nn.utils.clip_grad_norm_(self._model.parameters(), self._method.config.clip)
        return take_step

    def after_step(self) -> None:
        """Mask the weights that the optimizer has changed, count the step, update the masks.

        Raises:
            RunError: the masks are to change, and the loss is not finite.
        """
        self._sparse.mask_weights()
        self._clock.step += 1
        self._method.on_weights(self.run)
        if self.run.step == self.run.final_prune_step:
            self.final_prune()
        elif self.run.step < self.run.final_prune_step:
            self._prune_along_path()

    def final_prune(self) -> None:
        """Prune to exactly the zeros that were asked for; the masks are fixed from now on.

        Raises:
            RunError: the loss is not finite.
        """
        run, sparse = self.run, self._sparse
        run.check_loss()
        self._callback.before_final_prune(run)
        if sparse.present != sparse.budgets:  # a method of constant sparsity is there already
            run.prune_to_sparsity(
                run.sparsity, self._method.scores(run), self._method.config.ranking
            )
        self._method.on_prune(run)
        if zero_count(run.total, run.sparsity) > 0:
            recalibrate_batchnorm(
                self._model, islice(run.batches(run.epoch), RECALIBRATION_BATCHES)
            )
            self._distributed.average(b for b in self._model.buffers() if b.is_floating_point())
        for name, mask in run.masks.items():
            if not mask.any():
                self._callback.on_warning(
                    f"{name} has lost all its weights: its layer passes only its bias"
                )

    def finish(self) -> None:
        """Check that exactly as many weights are zero as were asked for.

        Raises:
            RunError: a weight is not finite, or a count of zeros is not the one asked for.
        """
        self._sparse.finalize()

    def _inherit_zeros(self) -> None:
        """Mask the weights that are zero in the checkpoint."""
        self.run.set_masks({name: w.detach() != 0 for name, w in self.run.weights.items()})
        warning = self._sparse.inherit_zeros()
        if warning is not None:
            self._callback.on_warning(warning)

    def _remaining_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of the current epoch that are still to come.

        A data set may draw from this process's random generators while it is read. A resumed run
        reads the batches of finished steps again, then restores the generators.
        """
        run, done = self.run, self._clock.step_in_epoch
        if done == run.steps_per_epoch:
            return iter(())
        batches = run.batches(run.epoch)
        if done:
            with seeds.preserve_rng_state(run.device):
                for _ in islice(batches, done):
                    pass
        return batches

    def _compute_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Run the forward pass of a batch and return its loss, scaled for this process's shard."""
        run, precision = self.run, self._settings.precision
        self._distributed.broadcast(self._model.buffers())
        with torch_utils.autocast(x.device, precision):
            outputs = self._model(x)
        outputs = outputs.to(torch.float32) if precision != "fp32" else outputs
        loss = run.loss(outputs, y)
        if self._teacher is not None:
            loss = self._teacher.loss(x, outputs, loss)
        return loss * run.loss_scale

    def _update_is_near(self) -> bool:
        """Return whether the masks may change within the next ``ACTIVITY_WINDOW`` steps."""
        if not self._sparse.budgets.zeros:
            return False  # dense training
        # A method that decides by itself may prune after any step.
        step, every = self.run.step + 1, self._method.config.frequency or 1
        final = self.run.final_prune_step
        return step <= final and min(-step % every, final - step) < activity.ACTIVITY_WINDOW

    def _prune_along_path(self) -> None:
        """Prune to the sparsity that the method wants after this step, if any."""
        run = self.run
        sparsity = self._method.sparsity_at(run)
        if sparsity is not None and zero_count(run.total, sparsity) > 0:
            run.check_loss()
            run.prune_to_sparsity(sparsity, self._method.scores(run), self._method.config.ranking)
            self._method.on_prune(run)

    def _end_epoch(self, began: float) -> None:
        """Record the epoch that has just ended."""
        run = self.run
        self._clock.epoch += 1
        run.history.append(
            {
                "epoch": run.epoch,
                "loss": float(run.loss_sum) / run.steps_per_epoch,
                "sparsity": run.masked / run.total if run.total else 0.0,
                "hoyer": self._sparse.mean_hoyer(),
                "lr": max(group["lr"] for group in run.optimizer.param_groups),
                "seconds": time.perf_counter() - began,
            }
        )
        run.loss_sum.zero_()
        run.epoch_seconds = 0.0
        self._callback.on_epoch(run)


def _check_trainable(model: nn.Module, batch_size: int, settings: TrainingSettings) -> None:
    """Refuse a network without trainable parameters, and BatchNorm on batches of one example.

    Raises:
        InputError: it is one of them.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("the network has no trainable parameter", "set requires_grad=True")
    has_norm = any(isinstance(m, _BatchNorm) for m in model.modules())
    if batch_size == 1 and has_norm and settings.epochs:
        raise InputError(
            "BatchNorm cannot train on batches of one",
            "give --batch-size of 2 up, and more for several processes",
        )
