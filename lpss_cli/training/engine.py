"""The one training loop that every command shares."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.errors import RunError
from lpss_cli.sparsity import activity
from lpss_cli.sparsity.lp_geometry import hoyer
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import Method
from lpss_cli.training.setup import Settings, start
from lpss_cli.training.state import RunState
from lpss_cli.utils import seeds, torch_utils

if TYPE_CHECKING:
    from lpss_cli.data import Data

# MERGED: What a step is made of, and the cuts between steps.
# MERGED: The engine calls these around its own forward and backward pass; ``Sparsifier`` calls
# MERGED: them around a
# MERGED: step in somebody else's loop.
# Batches that re-estimate BatchNorm statistics after the exact cut; more changes little.
_NORM_BATCHES = 50


def set_rates(run: RunState, method: Method) -> None:
    """Give every group of the optimizer the learning rate that the method has for this step."""
    factor = method.lr_scale(run)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def before_step(run: RunState, method: Method) -> bool:
    """Show the method dense gradients, then mask and clip them; False skips the optimizer step."""
    if _before_cut(run, method):
        run.activity.update(run.weights)
    wanted = method.on_gradients(run)
    run.mask_gradients()
    if method.config.clip:
        # Without it a network without BatchNorm diverges at learning rates that suit it later.
        nn.utils.clip_grad_norm_(run.model.parameters(), method.config.clip)
    return wanted


def after_step(run: RunState, method: Method) -> None:
    """Hold the masks after the optimizer's step, and count it."""
    run.mask_weights()
    run.step += 1
    method.on_weights(run)


def _before_cut(run: RunState, method: Method) -> bool:
    """Whether the coming step is one of the last before the masks may change."""
    if not run.budgets.zeros:
        return False  # dense training
    # A method with a rhythm of its own may cut after any step.
    step, every = run.step + 1, method.config.frequency or 1
    return (
        step <= run.final_prune_step
        and min(-step % every, run.final_prune_step - step) < activity.ACTIVITY_WINDOW
    )


def update_masks(run: RunState, method: Method, callback: Callback) -> None:
    """Follow the method's path up to the exact cut; after it the masks are fixed."""
    if run.step == run.final_prune_step:
        final_prune(run, method, callback)
    elif run.step < run.final_prune_step:
        sparsity = method.sparsity_at(run)
        if sparsity is not None and zero_count(run.total, sparsity) > 0:
            check_loss(run)
            run.prune_to_sparsity(sparsity, method.scores(run), method.config.ranking)
            method.on_prune(run)


def final_prune(run: RunState, method: Method, callback: Callback) -> None:
    """Cut to exactly the zeros that were asked for; from here on the masks are fixed."""
    check_loss(run)
    callback.on_prune(run)
    wanted = zero_count(run.total, run.sparsity)
    if run.present != run.budgets:  # a method of constant sparsity is there already
        run.prune_to_sparsity(run.sparsity, method.scores(run), method.config.ranking)
    method.on_prune(run)
    if wanted > 0:
        recalibrate_norms(run.model, islice(run.batches(run.epoch), _NORM_BATCHES))
        run.distributed.average(b for b in run.model.buffers() if b.is_floating_point())
    for name, mask in run.masks.items():
        if not mask.any():
            callback.on_warning(f"{name} has lost all its weights: its layer passes only its bias")


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Estimate every BatchNorm's running statistics anew as plain means over the batches.

    Without a batch they stay as they are, and so does one that is frozen: in evaluation mode
    within a network in training.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    norms = [norm for norm in norms if norm.training or not model.training]
    first = next(batches, None) if norms else None
    if first is None:
        return
    momenta = [norm.momentum for norm in norms]
    with torch_utils.preserve_training_mode(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative mean
            norm.train()
        for x, _ in chain([first], batches):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def check_loss(run: RunState) -> None:
    """Refuse to go on from a loss that is no number.

    Raises:
        RunError: the sum of the present epoch's losses is not finite.
    """
    run.distributed.average([run.loss_sum])  # all of them know all of it, and go on from there
    total = float(run.loss_sum)
    if not math.isfinite(total):
        raise RunError(
            f"the loss is {total} in epoch {run.epoch + 1}, before step {run.step}",
            "lower --lr (and --eta); no file was written and the input is as it was",
        )


@torch.no_grad()
def finish(run: RunState) -> None:
    """Hold the promise: exactly the masked weights are zero, and they are as many as asked."""
    for name, weight in run.weights.items():
        if not bool(weight.isfinite().all()):
            raise RunError(f"{name} holds weights that are not finite", "lower --lr and try again")
        if run.sparsity > 0:
            # A kept weight that training left at exactly zero would count as pruned.
            tiny = torch.finfo(weight.dtype).tiny
            weight.masked_fill_(run.masks[name] & (weight == 0), tiny)
    zeros = sum(int((w == 0).sum()) for w in run.weights.values())
    asked = zero_count(run.total, run.sparsity)
    if run.sparsity > 0 and zeros != asked:
        raise RunError(
            f"{zeros:,} weights are zero where {asked:,} were asked for",
            "this is a defect of the method; please report it",
        )
    for name, wanted in run.budgets.layer_zeros.items():
        found = int((run.weights[name] == 0).sum())
        if run.sparsity > 0 and found != wanted:
            raise RunError(
                f"{found:,} weights of {name} are zero where --layer asked for {wanted:,}",
                "this is a defect of the method; please report it",
            )


# Steps between looks at the loss: reading it makes a GPU wait.
_LOSS_CHECK = 50


def run(
    model: nn.Module,
    data: Data,
    method: Method,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    resume: Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    distributed: DistributedContext | None = None,
) -> RunState:
    """Train ``model`` in place and leave exactly the zeros that were asked for.

    Args:
        model: the network; its weights are the start.
        data: only the training part is touched.
        method: how to become sparse.
        settings: budget, seed and target.
        device: where to train; the model stays there.
        callback: sees the run go by.
        resume: ``RunState.state_dict()`` of the same run, to go on from.
        teacher: what to distil from; None is the network as it begins.
        distributed: the processes that share the work; None: this one alone.

    Returns:
        The finished run: masks, history, per-layer facts.

    Raises:
        InputError: a pattern matches nothing, or the target leaves nothing.
        RunError: the loss is not finite, the count of zeros is not the one asked for, or the
            processes do not stay alike.
    """
    callback = callback or Callback()
    model.to(device)
    torch_utils.to_channels_last(model)
    state = start(
        model,
        data,
        method,
        settings,
        device,
        callback,
        teacher,
        distributed or DistributedContext(),
    )
    if resume is not None:
        state.load_state_dict(resume)
    for text in state.notes:
        callback.on_note(text)
    callback.on_start(state)
    if state.total_steps == 0:
        final_prune(state, method, callback)
    # By epochs: a state saved after the last step of one has its end still before it.
    while state.epoch < state.epochs:
        _epoch(state, method, callback)
    finish(state)
    torch_utils.to_contiguous(model)
    return state


def _epoch(run: RunState, method: Method, callback: Callback) -> None:
    began = time.perf_counter() - run.epoch_seconds
    run.model.train()
    for x, y in _remaining(run):
        run.loss_sum += _step(run, method, x, y)
        update_masks(run, method, callback)
        run.epoch_seconds = time.perf_counter() - began
        callback.on_step(run)
        if run.step % _LOSS_CHECK == 0:
            check_loss(run)
    check_loss(run)
    run.epoch += 1
    run.history.append(
        {
            "epoch": run.epoch,
            "loss": float(run.loss_sum) / run.steps_per_epoch,
            "sparsity": run.masked / run.total if run.total else 0.0,
            "hoyer": _hoyer(run),
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "seconds": time.perf_counter() - began,
        }
    )
    run.loss_sum.zero_()
    run.epoch_seconds = 0.0
    callback.on_epoch(run)


def _remaining(run: RunState) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of the present epoch that are still to come.

    A data set may draw from the generators of this process while it is read, so what a resumed run
    passes over is read again, and leaves them where the last step did.
    """
    done = run.step - run.epoch * run.steps_per_epoch
    if done == run.steps_per_epoch:
        return iter(())
    batches = run.batches(run.epoch)
    if done:
        with seeds.preserve_rng_state(run.device):
            for _ in islice(batches, done):
                pass
    return batches


def _hoyer(run: RunState) -> float:
    """Return the mean Hoyer of all rows of the pruned weights, by their number of weights."""
    known, total = 0.0, 0
    for name, weight in run.weights.items():
        rows = hoyer(weight.detach(), run.row_dims[name] or 0)
        rows = rows[rows.isfinite()]
        if len(rows):
            known += float(rows.mean()) * weight.numel()
            total += weight.numel()
    return known / total if total else 0.0


def _step(run: RunState, method: Method, x: Tensor, y: Tensor) -> Tensor:
    set_rates(run, method)
    run.optimizer.zero_grad(set_to_none=True)
    run.distributed.broadcast(run.model.buffers())
    with torch_utils.autocast(x.device, run.precision):
        outputs = run.model(x)
    outputs = outputs.to(torch.float32) if run.precision != "fp32" else outputs
    loss = run.loss(outputs, y)
    if run.teacher is not None:
        loss = run.teacher.loss(x, outputs, loss)
    loss = loss * run.loss_scale
    loss.backward()
    run.distributed.average_gradients(run.model.parameters())
    if before_step(run, method):
        run.optimizer.step()
    after_step(run, method)
    return loss.detach()
