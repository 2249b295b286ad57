"""The Python interface: make a model in memory sparse, and report on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data, DataSpec
from lpss_cli.data.factory import as_source
from lpss_cli.data.sources import LoaderSource, Source
from lpss_cli.data.tasks import CLASSIFICATION, REGRESSION, Loss, Task
from lpss_cli.reporting.report import Report, report
from lpss_cli.sparsity.prunable import prunable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import make
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.training.run import Run
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils import torch_utils
from lpss_cli.utils.options import keywords, only, options

#: A DataLoader, a map-style Dataset, or a pair of tensors or arrays (inputs, targets).
Examples = Any


@dataclass(frozen=True)
class Sparse:
    """A model that was made sparse, and what is known about it.

    Attributes:
        model: the model that was given, now with exactly the zeros that were asked for.
        report: its zeros and Hoyer sparsity, layer by layer.
        masks: name → bool tensor, True = kept.
        before, after: metrics on the test examples; None without test examples.
        history: loss, sparsity, Hoyer and seconds of every epoch.
    """

    model: nn.Module
    report: Report
    masks: dict[str, Tensor]
    before: dict[str, float] | None
    after: dict[str, float] | None
    history: list[dict[str, float]]


@keywords(
    only(TrainingOptions, "sparsity")
    | options(MethodOptions)
    | only(TrainingOptions, "epochs", "batch_size", "layers", "skip", "seed", "precision")
)
def sparsify(
    model: nn.Module,
    train: Examples,
    test: Examples | None = None,
    *,
    _chosen: Mapping[str, Any],
    loss: Loss | None = None,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    **method_options: Any,
) -> Sparse:
    """Sparse-train a model in place until exactly ``round(sparsity·N)`` of its weights are zero.

    Args:
        model: any network; its Linear, Conv and attention weights are pruned.
        train: training examples: a DataLoader that yields (inputs, targets) and is used as it is,
            a map-style Dataset, or a pair of tensors.
        test: examples to measure with, before and after; never used to choose anything.
        sparsity: zeros / prunable weights, in [0, 1), or a text as for ``--sparsity``.
        method: name of a method, as for ``lpss sparsify --method``.
        epochs: passes over the training examples; 0 only prunes.
        batch_size: batch size, unless ``train`` is a loader.
        loss: (outputs, targets) → scalar; None: cross-entropy for integer targets, mean squared
            error for others.
        layers: ``PATTERN=SPARSITY`` for layers with a target of their own, as for ``--layer``.
        skip: globs on names of weights that stay dense.
        seed: seed for data order, augmentation, random masks and dropout.
        device: where to train; None: where the model is.
        precision: ``fp32`` or ``bf16``.
        callback: watches the run.
        method_options: options of the method, named like their flags:
            ``p=1.2, eta=0.01, ranking="erk"``.

    Raises:
        InputError: an argument does not exist or does not fit; the model is unchanged.
        RunError: training diverged.
    """
    callback = renamed_callback(callback, method_options)
    check_sparsity(_chosen["sparsity"])
    method = make(_chosen["method"], method_options)
    settings = settings_of(_chosen)
    data = data_of(train, test, loss)
    if isinstance(data.train, LoaderSource):
        settings = replace(settings, batch_size=data.train.batch_size)
    device = next(model.parameters()).device if device is None else torch.device(device)

    def metrics() -> dict[str, float] | None:
        return None if test is None else evaluate(model, data.test, data.task, device=device)

    before = metrics()
    with torch_utils.preserve_training_mode(model):
        trainer = Trainer(model, data, method, settings, device=device, callback=callback)
        run = trainer.train()
    return result_of(model, run, before, metrics())


def describe(
    model: nn.Module,
    layer_info: dict[str, dict[str, Any]] | None = None,
    *,
    facts: dict[str, dict[str, Any]] | None = None,
) -> Report:
    """Report on a model in memory: zeros and Hoyer sparsity, layer by layer.

    Args:
        model: any network.
        layer_info: name → what a run noted about a weight; None: every prunable weight, without
            notes.
        facts: deprecated name of ``layer_info``.
    """
    if facts is not None:
        warnings.warn("facts is now layer_info", DeprecationWarning, stacklevel=2)
        layer_info = facts
    if layer_info is None:
        model = uncompiled(model)
        layer_info = {n: {"row_dim": w.row_dim} for n, w in prunable_weights(model).items()}
    state = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    size = sum(t.numel() * t.element_size() for t in state.values())
    checkpoint = Checkpoint(Path(type(model).__name__), state, {"weights": layer_info})
    return replace(report(checkpoint), file_bytes=size)


def result_of(
    model: nn.Module,
    run: Run,
    before: dict[str, float] | None = None,
    after: dict[str, float] | None = None,
) -> Sparse:
    """Return a model with the report and the masks of its finished run."""
    layer_info = {n: {"row_dim": run.row_dims[n], **run.layer_info[n]} for n in run.weights}
    return Sparse(model, describe(model, layer_info), dict(run.masks), before, after, run.history)


def renamed_callback(callback: Callback | None, others: dict[str, Any]) -> Callback | None:
    """Return the callback, also if it was given under its deprecated name ``watcher``.

    Args:
        callback: the argument ``callback``.
        others: other keywords; ``watcher`` is taken out of them.
    """
    if "watcher" not in others:
        return callback
    warnings.warn("watcher is now callback", DeprecationWarning, stacklevel=4)
    watcher: Callback | None = others.pop("watcher")
    return watcher if callback is None else callback


def settings_of(chosen: Mapping[str, Any]) -> TrainingSettings:
    """Return the settings of a training in memory, from the options that a function was given."""
    known = {name: value for name, value in chosen.items() if name in options(TrainingOptions)}
    return TrainingSettings(**known, keep_zeros=True)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module within the result of ``torch.compile``: same weights, original names."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def data_of(train: Examples, test: Examples | None, loss: Loss | None) -> Data:
    """Return examples in memory as data with a task that fits their targets.

    Raises:
        InputError: they are not examples.
    """
    source = _source(train, "training")
    x, y = source.first if isinstance(source, LoaderSource) else next(source.batches(1))
    task = REGRESSION if y.is_floating_point() else CLASSIFICATION
    if loss is not None:
        task = _custom_task(task, loss)
    return Data(
        spec=DataSpec("memory"),
        name="examples in memory",
        train=source,
        test=source if test is None else _source(test, "test"),
        task=task,
        input_shape=tuple(x.shape[1:]),
        outputs=0,
        classes=(),
    )


def _source(examples: Examples, name: str) -> Source:
    if isinstance(examples, DataLoader):
        return LoaderSource(examples)
    return as_source(examples, 0, name)


def _custom_task(base: Task, loss: Loss) -> Task:
    """Return a task with the user's loss, which is also its only metric."""

    def metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": float(loss(outputs, targets).detach())}

    return replace(
        base, name="custom", loss=loss, metrics=metrics, primary="loss", higher_is_better=False
    )
