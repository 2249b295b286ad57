"""What a step is made of, and the cuts between steps.

The engine calls these around its own forward and backward pass; ``Sparsifier`` calls them around a
step in somebody else's loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpss_cli import idle
from lpss_cli.errors import RunError
from lpss_cli.method import Method
from lpss_cli.state import RunState
from lpss_cli.targets import zero_count
from lpss_cli.utils import torch_utils
from lpss_cli.watching import Watcher

# Batches that re-estimate BatchNorm statistics after the exact cut; more changes little.
_NORM_BATCHES = 50


def set_rates(run: RunState, method: Method) -> None:
    """Give every group of the optimizer the learning rate that the method has for this step."""
    factor = method.lr_factor(run)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def ready_gradients(run: RunState, method: Method) -> bool:
    """Show the method dense gradients, then mask and clip them; False skips the optimizer step."""
    if _before_cut(run, method):
        run.activity.look(run.weights)
    wanted = method.on_gradients(run)
    run.mask_gradients()
    if method.config.clip:
        # Without it a network without BatchNorm diverges at learning rates that suit it later.
        nn.utils.clip_grad_norm_(run.model.parameters(), method.config.clip)
    return wanted


def finish_step(run: RunState, method: Method) -> None:
    """Hold the masks after the optimizer's step, and count it."""
    run.mask_weights()
    run.step += 1
    method.on_weights(run)


def _before_cut(run: RunState, method: Method) -> bool:
    """Whether the coming step is one of the last before the masks may change."""
    if not run.quotas.zeros:
        return False  # dense training
    # A method with a rhythm of its own may cut after any step.
    step, every = run.step + 1, method.config.frequency or 1
    return step <= run.cut_step and min(-step % every, run.cut_step - step) < idle.WINDOW


def update_masks(run: RunState, method: Method, watcher: Watcher) -> None:
    """Follow the method's path up to the exact cut; after it the masks are fixed."""
    if run.step == run.cut_step:
        exact_cut(run, method, watcher)
    elif run.step < run.cut_step:
        sparsity = method.sparsity_at(run)
        if sparsity is not None and zero_count(run.total, sparsity) > 0:
            check_loss(run)
            run.prune_to(sparsity, method.scores(run), method.config.ranking)
            method.on_cut(run)


def exact_cut(run: RunState, method: Method, watcher: Watcher) -> None:
    """Cut to exactly the zeros that were asked for; from here on the masks are fixed."""
    check_loss(run)
    watcher.on_cut(run)
    wanted = zero_count(run.total, run.sparsity)
    if run.present != run.quotas:  # a method of constant sparsity is there already
        run.prune_to(run.sparsity, method.scores(run), method.config.ranking)
    method.on_cut(run)
    if wanted > 0:
        recalibrate_norms(run.model, islice(run.batches(run.epoch), _NORM_BATCHES))
        run.world.average(b for b in run.model.buffers() if b.is_floating_point())
    for name, mask in run.masks.items():
        if not mask.any():
            watcher.on_warning(f"{name} has lost all its weights: its layer passes only its bias")


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
    run.world.average([run.loss_sum])  # all of them know all of it, and go on from there
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
    for name, wanted in run.quotas.own.items():
        found = int((run.weights[name] == 0).sum())
        if run.sparsity > 0 and found != wanted:
            raise RunError(
                f"{found:,} weights of {name} are zero where --layer asked for {wanted:,}",
                "this is a defect of the method; please report it",
            )
