"""lpss from Python: a model in memory becomes sparse, in one call."""

from __future__ import annotations

from collections.abc import Sequence
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
from lpss_cli.errors import InputError
from lpss_cli.report.report import Report, report
from lpss_cli.sparsity.prunable import prunable_weights
from lpss_cli.sparsity.targets import check_sparsity, parse_sparsity
from lpss_cli.training import engine
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import make
from lpss_cli.training.setup import Settings
from lpss_cli.training.state import RunState
from lpss_cli.utils import torch_utils

#: A loader, a map-style Dataset, or a pair of tensors or arrays (inputs, targets).
Examples = Any


@dataclass(frozen=True)
class Sparse:
    """What became of a model.

    Attributes:
        model: the model that was given, now with exactly the zeros that were asked for.
        report: its zeros and Hoyer sparsity, layer by layer.
        masks: name → bool tensor, True = kept.
        before, after: metrics on the test examples; None without such.
        history: loss, sparsity, Hoyer and seconds of every epoch.
    """

    model: nn.Module
    report: Report
    masks: dict[str, Tensor]
    before: dict[str, float] | None
    after: dict[str, float] | None
    history: list[dict[str, float]]


def sparsify(
    model: nn.Module,
    train: Examples,
    test: Examples | None = None,
    *,
    sparsity: float | str = 0.9,
    p: float | str | Sequence[str] | None = None,
    method: str = "lpss",
    epochs: int = 4,
    batch_size: int = 256,
    loss: Loss | None = None,
    layers: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    callback: Callback | None = None,
    **options: Any,
) -> Sparse:
    """Sparse-train a model in place until exactly ``round(sparsity·N)`` of its weights are zero.

    Args:
        model: any network; its Linear, Conv and attention weights are pruned.
        train: what to learn from: a DataLoader that yields (inputs, targets) and is used as it
            is, a map-style Dataset, or a pair of tensors.
        test: what to measure with, before and after; never used to choose anything.
        sparsity: zeros / prunable weights, in [0, 1), or a text as ``--sparsity`` takes it.
        p: exponent of the spheres, 0.2…1 or 1.03…4, or what ``--p`` takes; None chooses by layer.
        method: a name that ``lpss sparsify --method`` knows.
        epochs: passes over the training examples; 0 only cuts.
        batch_size: of what is no loader.
        loss: (outputs, targets) → scalar; None: cross-entropy for whole-number targets, mean
            squared error for others.
        layers: ``PATTERN=SPARSITY`` of layers with a target of their own, as ``--layer``.
        skip: globs on names of weights that stay dense.
        seed: decides order, augmentation, random masks and dropout.
        device: where to train; None: where the model is.
        precision: ``fp32`` or ``bf16``.
        callback: sees the run go by.
        options: the method's own, under the names of their flags: ``eta=0.01, ranking="erk"``.

    Raises:
        InputError: something does not exist or fit; the model is as it was.
        RunError: training diverged.
    """
    target = check_sparsity(parse_sparsity(sparsity, "sparsity"))
    if p is not None:
        options["p"] = texts(p)
    chosen = make(method, options)
    data = data_of(train, test, batch_size, loss)
    home = next(model.parameters()).device if device is None else torch.device(device)
    size = data.train.batch_size if isinstance(data.train, LoaderSource) else batch_size
    patterns = texts(layers), texts(skip)
    settings = Settings(epochs, size, seed, target, *patterns, keep_zeros=True, precision=precision)

    def metrics() -> dict[str, float] | None:
        return None if test is None else evaluate(model, data.test, data.task, device=home)

    before = metrics()
    with torch_utils.preserve_training_mode(model):
        run = engine.run(model, data, chosen, settings, device=home, callback=callback)
    return result_of(model, run, before, metrics())


def texts(given: float | str | Sequence[float | str]) -> tuple[str, ...]:
    """Return one value or several as an option of many takes them."""
    return (str(given),) if isinstance(given, (int, float, str)) else tuple(map(str, given))


def result_of(
    model: nn.Module,
    run: RunState,
    before: dict[str, float] | None = None,
    after: dict[str, float] | None = None,
) -> Sparse:
    """Return what a finished run has made of a model."""
    facts = {n: {"row_dim": run.row_dims[n], **run.layer_info[n]} for n in run.weights}
    found = describe(model, facts)
    return Sparse(model, found, dict(run.masks), before, after, run.history)


def describe(model: nn.Module, facts: dict[str, dict[str, Any]] | None = None) -> Report:
    """Report on a model in memory: zeros and Hoyer sparsity, layer by layer.

    Args:
        model: any network.
        facts: name → what a run noted about a weight; None: every prunable weight, without.
    """
    if facts is None:
        model = uncompiled(model)
        facts = {
            name: {"row_dim": weight.row_dim} for name, weight in prunable_weights(model).items()
        }
    state = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    size = sum(t.numel() * t.element_size() for t in state.values())
    named = Checkpoint(Path(type(model).__name__), state, {"weights": facts})
    return replace(report(named), file_bytes=size)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module within what ``torch.compile`` made of it: the same weights, own names."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def data_of(train: Examples, test: Examples | None, batch_size: int, loss: Loss | None) -> Data:
    """Return examples in memory as data with a task that fits their targets.

    Raises:
        InputError: they are no examples, or the batch size is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is not positive", "give 1 or more")
    source = _source(train, "training")
    x, y = source.first if isinstance(source, LoaderSource) else next(source.batches(1))
    whole = not y.is_floating_point()
    task = CLASSIFICATION if whole else REGRESSION
    if loss is not None:
        task = _custom(task, loss)
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


def _custom(base: Task, loss: Loss) -> Task:
    """Return a task with the user's loss; what it is worth is all there is to measure."""

    def metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": float(loss(outputs, targets).detach())}

    return replace(
        base, name="custom", loss=loss, metrics=metrics, primary="loss", higher_is_better=False
    )
