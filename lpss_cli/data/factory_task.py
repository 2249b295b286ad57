"""What a factory's data is for: shapes, classes, loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lpss_cli import tasks
from lpss_cli.data.sources import DatasetSource, Source
from lpss_cli.data.workers import Guarded, collate
from lpss_cli.errors import InputError, LpssError, nearest
from lpss_cli.tasks import Loss, Task


@dataclass(frozen=True)
class Facts:
    """What a network for this data must look like."""

    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    classification: bool


def _first(source: Source) -> tuple[Tensor, Tensor]:
    """Return the first example as a batch of one."""
    if isinstance(source, DatasetSource):
        batch = collate([Guarded(source.dataset)[0]])
        if isinstance(batch, LpssError):
            raise batch
        return batch
    return next(source.batches(1))


def read_facts(given: Mapping[str, Any], train: Source, test: Source) -> Facts:
    """Collect shapes and classes: given, or read off the data.

    Raises:
        InputError: the two parts differ, or labels and classes do not fit together.
    """
    (x, y), (x_test, y_test) = _first(train), _first(test)
    if x.shape != x_test.shape or y.dtype != y_test.dtype:
        raise InputError(
            f"training examples are {tuple(x.shape[1:])} with {y.dtype} targets, test examples "
            f"{tuple(x_test.shape[1:])} with {y_test.dtype}",
            "give both parts the same shape and type",
        )
    own = given.get("loss") is not None or given.get("metrics") is not None
    classification = not y.is_floating_point()
    classes = tuple(map(str, given.get("classes") or ()))
    outputs = given.get("outputs") or len(classes)
    if not outputs:
        outputs = _count_classes(train, test) if classification else (y[0].numel() or 1)
    if classification and not own:
        classes = classes or tuple(str(index) for index in range(outputs))
        _check_labels(train, test, outputs)
    if classes and len(classes) != outputs:
        raise InputError(f"{len(classes)} classes but {outputs} outputs", "give as many of both")
    shape = tuple(int(side) for side in given.get("input_shape") or x.shape[1:])
    return Facts(shape, int(outputs), classes, classification)


def _count_classes(train: Source, test: Source) -> int:
    """Return the highest label + 1, which only data in memory can tell."""
    labels = [source.labels for source in (train, test)]
    known = [part for part in labels if part is not None]
    if len(known) < 2:
        raise InputError("the number of classes of a Dataset is unknown", "return 'outputs' too")
    return int(max(part.max() for part in known)) + 1


def _check_labels(train: Source, test: Source, outputs: int) -> None:
    for name, source in (("train", train), ("test", test)):
        labels = source.labels
        if labels is None:
            continue
        if labels.ndim != 1 or int(labels.min()) < 0 or int(labels.max()) >= outputs:
            raise InputError(
                f"the {name} targets have shape {tuple(labels.shape)} and values "
                f"{int(labels.min())} to {int(labels.max())}",
                f"give class indices (N,) from 0 to {outputs - 1}, or your own loss",
            )


def make_task(given: Mapping[str, Any], classification: bool) -> Task:
    """Put the factory's own loss and metrics into the standard task.

    Raises:
        InputError: metrics without a primary one, or an unknown primary.
    """
    base = tasks.CLASSIFICATION if classification else tasks.REGRESSION
    loss, metrics = given.get("loss"), given.get("metrics")
    if metrics is None:
        if loss is not None:
            # Its loss is all that is known to be meaningful.
            return Task("custom", loss, partial(_loss_alone, loss), "loss", higher_is_better=False)
        return base if given.get("primary") is None else _with_primary(base, given["primary"])
    if not given.get("primary"):
        raise InputError(
            "the factory's metrics have no primary one", "return 'primary': the metric that counts"
        )
    higher = bool(given.get("higher_is_better", True))
    return Task("custom", loss or base.loss, metrics, str(given["primary"]), higher)


def _loss_alone(loss: Loss, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {"loss": float(torch.as_tensor(loss(outputs, targets)).detach())}


def _with_primary(base: Task, primary: str) -> Task:
    names = {
        "classification": ("accuracy", "balanced_accuracy"),
        "regression": ("r2", "rmse", "mae"),
    }
    if primary not in names[base.name]:
        raise InputError(
            f"{base.name} has no metric {primary!r}", nearest(primary, names[base.name])
        )
    return replace(base, primary=primary, higher_is_better=primary not in ("rmse", "mae"))
