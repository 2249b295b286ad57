"""The one training loop that every command shares."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lpss_cli.method import Method
from lpss_cli.processes.distributed import World
from lpss_cli.sphere import hoyer
from lpss_cli.starting import Settings, start
from lpss_cli.state import RunState
from lpss_cli.stepping import (
    check_loss,
    exact_cut,
    finish,
    finish_step,
    ready_gradients,
    set_rates,
    update_masks,
)
from lpss_cli.utils import seeds, torch_utils
from lpss_cli.watching import Watcher

if TYPE_CHECKING:
    from lpss_cli.data import Data

# Steps between looks at the loss: reading it makes a GPU wait.
_LOSS_CHECK = 50


def run(
    model: nn.Module,
    data: Data,
    method: Method,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    watcher: Watcher | None = None,
    resume: Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    world: World | None = None,
) -> RunState:
    """Train ``model`` in place and leave exactly the zeros that were asked for.

    Args:
        model: the network; its weights are the start.
        data: only the training part is touched.
        method: how to become sparse.
        settings: budget, seed and target.
        device: where to train; the model stays there.
        watcher: sees the run go by.
        resume: ``RunState.state_dict()`` of the same run, to go on from.
        teacher: what to distil from; None is the network as it begins.
        world: the processes that share the work; None: this one alone.

    Returns:
        The finished run: masks, history, per-layer facts.

    Raises:
        InputError: a pattern matches nothing, or the target leaves nothing.
        RunError: the loss is not finite, the count of zeros is not the one asked for, or the
            processes do not stay alike.
    """
    watcher = watcher or Watcher()
    model.to(device)
    torch_utils.to_channels_last(model)
    state = start(model, data, method, settings, device, watcher, teacher, world or World())
    if resume is not None:
        state.load_state_dict(resume)
    for text in state.notes:
        watcher.on_note(text)
    watcher.on_start(state)
    if state.total_steps == 0:
        exact_cut(state, method, watcher)
    # By epochs: a state saved after the last step of one has its end still before it.
    while state.epoch < state.epochs:
        _epoch(state, method, watcher)
    finish(state)
    torch_utils.to_contiguous(model)
    return state


def _epoch(run: RunState, method: Method, watcher: Watcher) -> None:
    began = time.perf_counter() - run.epoch_seconds
    run.model.train()
    for x, y in _remaining(run):
        run.loss_sum += _step(run, method, x, y)
        update_masks(run, method, watcher)
        run.epoch_seconds = time.perf_counter() - began
        watcher.on_step(run)
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
    watcher.on_epoch(run)


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
    run.world.share(run.model.buffers())
    with torch_utils.autocast(x.device, run.precision):
        outputs = run.model(x)
    outputs = outputs.to(torch.float32) if run.precision != "fp32" else outputs
    loss = run.loss(outputs, y)
    if run.teacher is not None:
        loss = run.teacher.loss(x, outputs, loss)
    loss = loss * run.part
    loss.backward()
    run.world.average_gradients(run.model.parameters())
    if ready_gradients(run, method):
        run.optimizer.step()
    finish_step(run, method)
    return loss.detach()
