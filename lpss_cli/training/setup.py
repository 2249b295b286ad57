"""What a run is told, and how it is made ready for its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lpss_cli.distributed.context import DistributedContext
from lpss_cli.errors import InputError
from lpss_cli.sparsity import layer_targets
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import (
    Weight,
    prunable_weights,
    reparametrized_weights,
    trainable_weights,
)
from lpss_cli.sparsity.targets import check_sparsity, zero_count
from lpss_cli.training import distillation
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import Method
from lpss_cli.training.state import RunState

if TYPE_CHECKING:
    from lpss_cli.data import Data

#: Of distillation: soft enough to tell the order of the wrong classes (Hinton et al. use 1 to 20).
TEMPERATURE = 4.0


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


def start(
    model: nn.Module,
    data: Data,
    method: Method,
    settings: Settings,
    device: torch.device | str,
    callback: Callback,
    teacher: nn.Module | None,
    distributed: DistributedContext,
) -> RunState:
    """Make a run: the weights to prune, its part of the data, masks and optimizer.

    Args and errors are those of :func:`engine.run`.
    """
    size = min(settings.batch_size, len(data.train))
    begin, end = distributed.shard(size)
    smallest = replace(settings, batch_size=size // distributed.size)
    candidates, skipped = choose(model, smallest, callback)
    distributed.broadcast(chain(model.parameters(), model.buffers()))
    state = RunState(
        model,
        candidates,
        skipped,
        sparsity=settings.sparsity,
        layers=settings.layers,
        epochs=settings.epochs,
        steps_per_epoch=len(data.train) // size,
        seed=settings.seed,
        batches=_batches(data, settings.seed, size, device, distributed),
        loss=data.task.loss,
        distributed=distributed,
    )
    state.precision = settings.precision
    state.batch_size, state.loss_scale = size, (end - begin) * distributed.size / size
    if settings.distill:
        distillation.check_task(data.task)
        source = model if teacher is None else teacher.to(device)
        state.teacher = distillation.teacher_of(
            source, settings.distill, settings.temperature, settings.precision
        )
    torch.manual_seed(distributed.seed(settings.seed))  # dropout
    prepare(state, method, callback, keep_zeros=settings.keep_zeros)
    return state


def _batches(
    data: Data, seed: int, size: int, device: torch.device | str, distributed: DistributedContext
) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Return epoch → this process's part of its training batches, the same for the same seed."""
    begin, end = distributed.shard(size)
    # What this process draws for its own examples; the order is the same for all.
    stream = (seed,) if distributed.size == 1 else (seed, distributed.rank)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of this process, in the order of the epoch."""
        from lpss_cli.data.splits import epoch_order, shard_order

        order = epoch_order(len(data.train), seed, epoch)
        return data.train.batches(
            end - begin,
            device=device,
            order=shard_order(order, size, begin, end),
            drop_last=True,
            augment=data.augment,
            seed=(*stream, epoch),
        )

    return batches


def prepare(
    run: RunState,
    method: Method,
    callback: Callback,
    *,
    keep_zeros: bool,
    optimizer: Optimizer | None = None,
) -> None:
    """Make a run ready for its first step: first masks, the optimizer, the step of the exact cut.

    Args:
        run: not begun yet.
        method: how it becomes sparse.
        callback: warned of more zeros than were asked for.
        keep_zeros: the start is a checkpoint, and as many weights as are zero in it stay zero.
        optimizer: takes the place of the method's own, with its own learning rates.
    """
    run.from_checkpoint = keep_zeros
    run.final_prune_step = max(1, math.floor(method.config.end * run.total_steps))
    if keep_zeros:
        _inherit_zeros(run, callback)
    run.notes += run.budgets.notes(run.sizes)
    method.prepare(run)
    if optimizer is not None:
        run.optimizer = optimizer
    else:
        run.optimizer = method.make_optimizer(run)
        for group in run.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    run.enforce()


def choose(
    model: nn.Module, settings: Settings, callback: Callback
) -> tuple[dict[str, Weight], list[str]]:
    """Return the trainable Linear and Conv weights, and the names of those not to prune.

    Raises:
        InputError: a pattern matches nothing, nothing is left, or a target that cannot be.
    """
    candidates = trainable_weights(model)
    frozen = [name for name in prunable_weights(model) if name not in candidates]
    if frozen:
        callback.on_warning(f"frozen weights are not pruned: {', '.join(frozen)}")
    made = reparametrized_weights(model)
    if made:
        callback.on_warning(f"weights made from other parameters are not pruned: {', '.join(made)}")
    skipped = resolve_patterns(settings.skip, list(candidates), "--skip")
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


def _inherit_zeros(run: RunState, callback: Callback) -> None:
    run.set_masks({name: w.detach() != 0 for name, w in run.weights.items()})
    run.start_sparsity = run.masked / run.total if run.total else 0.0
    run.start, asked = run.present, zero_count(run.total, run.sparsity)
    if run.budgets.layer_zeros:
        layer_targets.check_initial_zeros(run.start, run.budgets, run.sizes)
    elif run.masked > asked:
        callback.on_warning(
            f"the input already has {run.masked:,} zeros, more than the {asked:,} asked for; "
            "they are kept"
        )
        run.sparsity, run.budgets = run.start_sparsity, run.start
