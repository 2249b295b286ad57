"""Anything else: a Python function, typed on the command line, that returns the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from lpss_cli.data import augment as augmentation
from lpss_cli.data import splits, tasks
from lpss_cli.data.bundle import Data
from lpss_cli.data.sources import DatasetSource, Source, TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.tasks import Loss, Task
from lpss_cli.data.workers import ErrorCapturingDataset, as_input, as_target, collate
from lpss_cli.errors import InputError, LpssError, nearest
from lpss_cli.utils.user_code import call_function, is_import_path


# MERGED: What a factory's data is for: shapes, classes, loss and metrics.
@dataclass(frozen=True)
class NetworkRequirements:
    """What a network for this data must look like."""

    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    classification: bool


def _first(source: Source) -> tuple[Tensor, Tensor]:
    """Return the first example as a batch of one."""
    if isinstance(source, DatasetSource):
        batch = collate([ErrorCapturingDataset(source.dataset)[0]])
        if isinstance(batch, LpssError):
            raise batch
        return batch
    return next(source.batches(1))


def infer_requirements(
    given: Mapping[str, Any], train: Source, test: Source
) -> NetworkRequirements:
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
    return NetworkRequirements(shape, int(outputs), classes, classification)


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


__all__ = ["is_import_path", "load"]

_KEYS = (
    "train", "test", "loss", "metrics", "primary", "higher_is_better",
    "outputs", "classes", "input_shape", "augment",
)  # fmt: skip
_SHAPE = "return (train, test), each (x, y) or a map-style Dataset, or a dict with these keys"


def load(spec: DataSpec) -> Data:
    """Call the factory ``file.py:function`` and take what it returns.

    It returns ``(train, test)``, each a pair (x, y) of tensors or arrays or a map-style
    Dataset; or a dict with the keys ``train`` and ``test`` and optionally ``loss`` (outputs,
    targets) -> scalar, ``metrics`` (outputs, targets) -> dict, ``primary``,
    ``higher_is_better``, ``outputs``, ``classes``, ``input_shape``, ``augment``. Values are used
    as they are: the factory preprocesses. Whole-number targets mean classification, floating
    point regression, unless it gives its own loss or metrics.

    Raises:
        InputError: the file or function is missing, it fails, or returns something else.
    """
    refuse(
        spec, "data from a factory",
        "target", "drop", "split_seed", "image_size", "mean", "std",
    )  # fmt: skip
    given = _call(spec.name)
    train, test = (as_source(given[part], spec.workers, part) for part in ("train", "test"))
    facts = infer_requirements(given, train, test)
    own = given.get("augment")
    augment = own
    if spec.augment is not None:
        augment = augmentation.for_shape(spec.augment, facts.input_shape)
    return Data(
        spec=spec if own is not None else replace(spec, augment=spec.augment or "none"),
        name=spec.name.rpartition(":")[2],
        train=train,
        test=test,
        task=make_task(given, facts.classification),
        input_shape=facts.input_shape,
        outputs=facts.outputs,
        classes=facts.classes,
        preprocessing={"kind": "factory"},
        fingerprint=_fingerprint(spec.name, train, test),
        augment=augment,
    )


def _call(name: str) -> Mapping[str, Any]:
    """Call the factory; return a dict with known keys."""
    given = call_function(name)
    if isinstance(given, tuple | list) and len(given) == 2:
        given = {"train": given[0], "test": given[1]}
    if not isinstance(given, Mapping):
        raise InputError(f"{name} returned {_kind(given)}", f"{_SHAPE}: {', '.join(_KEYS)}")
    for key in given:
        if key not in _KEYS:
            raise InputError(f"{name} returned the unknown key {key!r}", nearest(str(key), _KEYS))
    for key in ("train", "test"):
        if key not in given:
            raise InputError(f"{name} returned no {key!r}", f"{_SHAPE}: {', '.join(_KEYS)}")
    for key in ("loss", "metrics", "augment"):
        if given.get(key) is not None and not callable(given[key]):
            raise InputError(f"{name}: {key!r} is {_kind(given[key])}", "give a function")
    return given


def _kind(value: Any) -> str:
    """Describe a wrong value for a message."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


def as_source(part: Any, workers: int, name: str) -> Source:
    """Return one part of the data as a source: a pair (x, y) or a map-style Dataset.

    Raises:
        InputError: it is something else, empty, or holds values that are not finite.
    """
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        part = part.tensors  # the same examples, without going through them one by one
    if isinstance(part, tuple | list) and len(part) == 2:
        x, y = (_tensor(value, f"{key} of {name}") for key, value in zip("xy", part, strict=True))
        if not len(x):
            raise InputError(f"the {name} part is empty", "give at least one example")
        return TensorSource(as_input(x), as_target(y))
    streamed = hasattr(part, "__getitem__") and hasattr(part, "__len__")
    if isinstance(part, IterableDataset | tuple | list | Tensor | np.ndarray) or not streamed:
        raise InputError(f"the {name} part is {_kind(part)}", f"{_SHAPE}: {', '.join(_KEYS)}")
    if not len(part):
        raise InputError(f"the {name} part is empty", "give at least one example")
    return DatasetSource(part, workers)


def _tensor(value: Any, name: str) -> Tensor:
    """Return a tensor or array as a finite CPU tensor with at least one axis."""
    try:
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    except TypeError as error:
        raise InputError(f"{name} holds {value.dtype}", "give numbers") from error
    if not isinstance(tensor, Tensor) or not tensor.ndim:
        raise InputError(f"{name} is {_kind(value)}", "give a tensor or a NumPy array of examples")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values", "remove or replace them")
    return tensor


def _fingerprint(name: str, train: Source, test: Source) -> str:
    """Over the tensors; for datasets, which nobody reads whole, over the code and the lengths."""
    if isinstance(train, TensorSource) and isinstance(test, TensorSource):
        tensors = (train.x, train.y, test.x, test.y)
        return splits.fingerprint_arrays(*(tensor.numpy() for tensor in tensors))
    code = Path(name.rpartition(":")[0]).read_text(encoding="utf-8")
    return splits.fingerprint_texts(
        (code, name.rpartition(":")[2], str(len(train)), str(len(test)))
    )
