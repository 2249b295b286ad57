"""The one training loop that every command shares."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lpss_cli import compute, distillation, idle, layertargets, randomness
from lpss_cli.distributed import World
from lpss_cli.errors import InputError, RunError
from lpss_cli.method import Method
from lpss_cli.patterns import resolve
from lpss_cli.sphere import hoyer
from lpss_cli.state import RunState
from lpss_cli.targets import check_sparsity, zero_count
from lpss_cli.watching import Watcher
from lpss_cli.weights import Weight, prunable, trainable

if TYPE_CHECKING:
    from lpss_cli.data import Data

#: Of distillation: soft enough to tell the order of the wrong classes (Hinton et al. use 1 to 20).
TEMPERATURE = 4.0
# Batches that re-estimate BatchNorm statistics after the exact cut; more changes little.
_NORM_BATCHES = 50
# Steps between looks at the loss: reading it makes a GPU wait.
_LOSS_CHECK = 50


@dataclass(frozen=True)
class Settings:
    """What a run needs to know beside its method.

    Attributes:
        epochs: passes over the training data; 0 only cuts.
        batch_size: examples per step, of all processes together; a smaller last batch is dropped.
        seed: decides data order, augmentation, random masks and dropout.
        sparsity: target zeros / prunable weights, in [0, 1).
        layers: ``PATTERN=SPARSITY`` of layers with a target of their own.
        skip: globs of weights that are not pruned.
        keep_zeros: the start is a checkpoint, and as many weights as are zero in it stay zero.
        precision: of the forward and backward pass, one of ``compute.PRECISIONS``.
        distill: part of the loss that compares with the network as it begins, in [0, 1].
        temperature: of that comparison, > 0.
    """

    epochs: int
    batch_size: int
    seed: int = 0
    sparsity: float = 0.0
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    keep_zeros: bool = False
    precision: str = "fp32"
    distill: float = 0.0
    temperature: float = TEMPERATURE


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
    compute.channels_last(model)
    state = _start(model, data, method, settings, device, watcher, teacher, world or World())
    if resume is not None:
        state.load_state_dict(resume)
    for text in state.notes:
        watcher.on_note(text)
    watcher.on_start(state)
    if state.total_steps == 0:
        exact_cut(state, method, watcher)
    # By epochs: a state saved after the last step of one has its end still before it.
    while state.epoch * state.steps_per_epoch < state.total_steps:
        _epoch(state, method, watcher)
    finish(state)
    compute.contiguous(model)
    return state


def _start(
    model: nn.Module,
    data: Data,
    method: Method,
    settings: Settings,
    device: torch.device | str,
    watcher: Watcher,
    teacher: nn.Module | None,
    world: World,
) -> RunState:
    size = min(settings.batch_size, len(data.train))
    begin, end = world.part(size)
    smallest = replace(settings, batch_size=size // world.size)
    candidates, skipped = choose(model, smallest, watcher)
    world.share(chain(model.parameters(), model.buffers()))
    # What this process draws for its own examples; the order is the same for all.
    stream = (settings.seed,) if world.size == 1 else (settings.seed, world.rank)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of one epoch, a function of (seed, epoch) and the process alone."""
        from lpss_cli.data.order import epoch_order, part_of_batches

        order = epoch_order(len(data.train), settings.seed, epoch)
        return data.train.batches(
            end - begin,
            device=device,
            order=part_of_batches(order, size, begin, end),
            drop_last=True,
            augment=data.augment,
            seed=(*stream, epoch),
        )

    state = RunState(
        model,
        candidates,
        skipped,
        sparsity=settings.sparsity,
        layers=settings.layers,
        epochs=settings.epochs,
        steps_per_epoch=len(data.train) // size,
        seed=settings.seed,
        batches=batches,
        loss=data.task.loss,
        world=world,
    )
    state.precision = settings.precision
    state.batch_size, state.part = size, (end - begin) * world.size / size
    if settings.distill:
        distillation.check_task(data.task)
        source = model if teacher is None else teacher.to(device)
        state.teacher = distillation.teacher_of(
            source, settings.distill, settings.temperature, settings.precision
        )
    torch.manual_seed(world.seed(settings.seed))  # dropout
    prepare(state, method, watcher, keep_zeros=settings.keep_zeros)
    return state


def prepare(
    run: RunState,
    method: Method,
    watcher: Watcher,
    *,
    keep_zeros: bool,
    optimizer: Optimizer | None = None,
) -> None:
    """Make a run ready for its first step: first masks, the optimizer, the step of the exact cut.

    Args:
        run: not begun yet.
        method: how it becomes sparse.
        watcher: warned of more zeros than were asked for.
        keep_zeros: the start is a checkpoint, and as many weights as are zero in it stay zero.
        optimizer: takes the place of the method's own, with its own learning rates.
    """
    run.from_checkpoint = keep_zeros
    run.cut_step = max(1, math.floor(method.config.end * run.total_steps))
    if keep_zeros:
        _inherit_zeros(run, watcher)
    run.notes += run.quotas.notes(run.sizes)
    method.prepare(run)
    if optimizer is not None:
        run.optimizer = optimizer
    else:
        run.optimizer = method.make_optimizer(run)
        for group in run.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    run.enforce()


def choose(
    model: nn.Module, settings: Settings, watcher: Watcher
) -> tuple[dict[str, Weight], list[str]]:
    """Return the trainable Linear and Conv weights, and the names of those not to prune.

    Raises:
        InputError: a pattern matches nothing, nothing is left, or a target that cannot be.
    """
    candidates = trainable(model)
    frozen = [name for name in prunable(model) if name not in candidates]
    if frozen:
        watcher.on_warning(f"frozen weights are not pruned: {', '.join(frozen)}")
    skipped = resolve(settings.skip, list(candidates), "--skip")
    total = sum(w.tensor.numel() for name, w in candidates.items() if name not in skipped)
    check_sparsity(settings.sparsity, total)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("the network has no trainable parameter", "set requires_grad=True")
    has_norm = any(isinstance(m, _BatchNorm) for m in model.modules())
    if settings.batch_size == 1 and has_norm and settings.epochs:
        raise InputError(
            "BatchNorm cannot train on batches of one",
            "give --batch-size of 2 up, and more for several processes",
        )
    return candidates, skipped


def _inherit_zeros(run: RunState, watcher: Watcher) -> None:
    run.set_masks({name: w.detach() != 0 for name, w in run.weights.items()})
    run.start_sparsity = run.masked / run.total if run.total else 0.0
    run.start, asked = run.present, zero_count(run.total, run.sparsity)
    if run.quotas.own:
        layertargets.check_start(run.start, run.quotas, run.sizes)
    elif run.masked > asked:
        watcher.on_warning(
            f"the input already has {run.masked:,} zeros, more than the {asked:,} asked for; "
            "they are kept"
        )
        run.sparsity, run.quotas = run.start_sparsity, run.start


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
        with randomness.kept(run.device):
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
    with compute.autocast(x.device, run.precision):
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

    Without a batch they stay as they are.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    first = next(batches, None) if norms else None
    if first is None:
        return
    training, momenta = model.training, [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
        norm.train()
    for x, _ in chain([first], batches):
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


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
