"""Data from a Python function that was named on the command line: ``file.py:function``."""

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
from lpss_cli.data.sources import Batch, DatasetSource, Source, TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.tasks import Loss, Task
from lpss_cli.data.workers import ErrorCapturingDataset, as_input, as_target, collate
from lpss_cli.errors import InputError, LpssError, nearest
from lpss_cli.utils.user_code import call_function

_KEYS = (
    "train", "test", "loss", "metrics", "primary", "higher_is_better",
    "outputs", "classes", "input_shape", "augment",
)  # fmt: skip
_EXPECTED = (
    "return (train, test), each (x, y) or a map-style Dataset, or a dict with these keys: "
    + ", ".join(_KEYS)
)


def load(spec: DataSpec) -> Data:
    """Call the factory ``file.py:function`` and take what it returns.

    It returns ``(train, test)``, each a pair (x, y) of tensors or arrays or a map-style Dataset.
    Or it returns a dict with the keys ``train`` and ``test`` and optionally ``loss`` (outputs,
    targets) -> scalar, ``metrics`` (outputs, targets) -> dict, ``primary``,
    ``higher_is_better``, ``outputs``, ``classes``, ``input_shape``, ``augment``. Values are used
    as they are: the factory preprocesses them. Whole-number targets mean classification and
    floating-point targets mean regression, unless the factory gives its own loss or metrics.

    Raises:
        InputError: the file or function is missing, it fails, or returns something else.
    """
    refuse(
        spec, "data from a factory",
        "target", "drop", "split_seed", "image_size", "mean", "std",
    )  # fmt: skip
    returned = _call(spec.name)
    train, test = (as_source(returned[part], spec.workers, part) for part in ("train", "test"))
    needed = infer_requirements(returned, train, test)
    augment = returned.get("augment")
    if augment is None:
        spec = replace(spec, augment=spec.augment or "none")
    if spec.augment is not None:
        augment = augmentation.for_shape(spec.augment, needed.input_shape)
    return Data(
        spec=spec,
        name=spec.name.rpartition(":")[2],
        train=train,
        test=test,
        task=make_task(returned, needed.classification),
        input_shape=needed.input_shape,
        outputs=needed.outputs,
        classes=needed.classes,
        preprocessing={"kind": "factory"},
        fingerprint=_fingerprint(spec.name, train, test),
        augment=augment,
    )


def _call(name: str) -> Mapping[str, Any]:
    """Call the factory; return a dict with known keys.

    Raises:
        InputError: it fails, or returns something else.
    """
    returned = call_function(name)
    if isinstance(returned, tuple | list) and len(returned) == 2:
        returned = {"train": returned[0], "test": returned[1]}
    if not isinstance(returned, Mapping):
        raise InputError(f"{name} returned {_kind(returned)}", _EXPECTED)
    for key in returned:
        if key not in _KEYS:
            raise InputError(f"{name} returned the unknown key {key!r}", nearest(str(key), _KEYS))
    for key in ("train", "test"):
        if key not in returned:
            raise InputError(f"{name} returned no {key!r}", _EXPECTED)
    for key in ("loss", "metrics", "augment"):
        if returned.get(key) is not None and not callable(returned[key]):
            raise InputError(f"{name}: {key!r} is {_kind(returned[key])}", "give a function")
    return returned


def as_source(part: Any, workers: int, name: str) -> Source:
    """Return one part of the data as a source: a pair (x, y) or a map-style Dataset.

    Args:
        part: what the user gave.
        workers: number of processes that read a Dataset; 0: this process.
        name: of the part, for messages.

    Raises:
        InputError: it is something else, empty, or holds values that are not finite.
    """
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        part = part.tensors  # the same examples, without iterating over them one by one
    if isinstance(part, tuple | list) and len(part) == 2:
        x, y = (_tensor(value, f"{key} of {name}") for key, value in zip("xy", part, strict=True))
        if not len(x):
            raise InputError(f"the {name} part is empty", "give at least one example")
        return TensorSource(as_input(x), as_target(y))
    streamed = hasattr(part, "__getitem__") and hasattr(part, "__len__")
    if isinstance(part, IterableDataset | tuple | list | Tensor | np.ndarray) or not streamed:
        raise InputError(f"the {name} part is {_kind(part)}", _EXPECTED)
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


def _kind(value: Any) -> str:
    """Describe a wrong value for a message."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


@dataclass(frozen=True)
class NetworkRequirements:
    """What a network for the data has to look like.

    Attributes:
        input_shape: shape of one example.
        outputs: number of outputs.
        classes: class names by index; empty for regression or a custom loss.
        classification: whether the targets are class indices.
    """

    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    classification: bool


def infer_requirements(
    returned: Mapping[str, Any], train: Source, test: Source
) -> NetworkRequirements:
    """Take shapes and classes from what the factory returned, or infer them from the data.

    Raises:
        InputError: the two parts differ, or labels and classes do not match.
    """
    (x, y), (x_test, y_test) = _first_example(train), _first_example(test)
    if x.shape != x_test.shape or y.dtype != y_test.dtype:
        raise InputError(
            f"training examples are {tuple(x.shape[1:])} with {y.dtype} targets, test examples "
            f"{tuple(x_test.shape[1:])} with {y_test.dtype}",
            "give both parts the same shape and type",
        )
    custom = returned.get("loss") is not None or returned.get("metrics") is not None
    classification = not y.is_floating_point()
    classes = tuple(map(str, returned.get("classes") or ()))
    outputs = returned.get("outputs") or len(classes)
    if not outputs:
        outputs = _count_classes(train, test) if classification else (y[0].numel() or 1)
    if classification and not custom:
        classes = classes or tuple(str(index) for index in range(outputs))
        _check_labels(train, test, outputs)
    if classes and len(classes) != outputs:
        raise InputError(
            f"{len(classes)} classes but {outputs} outputs", "give the same number of both"
        )
    shape = tuple(int(side) for side in returned.get("input_shape") or x.shape[1:])
    return NetworkRequirements(shape, int(outputs), classes, classification)


def _first_example(source: Source) -> Batch:
    """Return the first example as a batch of one."""
    if isinstance(source, DatasetSource):
        batch = collate([ErrorCapturingDataset(source.dataset)[0]])
        if isinstance(batch, LpssError):
            raise batch
        return batch
    return next(source.batches(1))


def _count_classes(train: Source, test: Source) -> int:
    """Return the highest label + 1, which is known for data in memory only."""
    labels = [source.labels for source in (train, test) if source.labels is not None]
    if len(labels) < 2:
        raise InputError("the number of classes of a Dataset is unknown", "return 'outputs' too")
    return int(max(part.max() for part in labels)) + 1


def _check_labels(train: Source, test: Source, outputs: int) -> None:
    """Check that the targets are class indices (N,) in [0, outputs), where they are known."""
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


def make_task(returned: Mapping[str, Any], classification: bool) -> Task:
    """Put the factory's own loss and metrics into the standard task.

    Raises:
        InputError: metrics without a primary one, or an unknown primary.
    """
    base = tasks.CLASSIFICATION if classification else tasks.REGRESSION
    loss, metrics = returned.get("loss"), returned.get("metrics")
    if metrics is None:
        if loss is not None:
            # Only its own loss is known to be meaningful.
            return Task("custom", loss, partial(_loss_alone, loss), "loss", higher_is_better=False)
        primary = returned.get("primary")
        return base if primary is None else _with_primary(base, primary)
    if not returned.get("primary"):
        raise InputError(
            "the factory's metrics have no primary one",
            "return 'primary', the name of the metric that runs are compared by",
        )
    higher = bool(returned.get("higher_is_better", True))
    return Task("custom", loss or base.loss, metrics, str(returned["primary"]), higher)


def _loss_alone(loss: Loss, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {"loss": float(torch.as_tensor(loss(outputs, targets)).detach())}


def _with_primary(base: Task, primary: str) -> Task:
    """Return a standard task with another of its metrics as the primary one."""
    names = {
        "classification": ("accuracy", "balanced_accuracy"),
        "regression": ("r2", "rmse", "mae"),
    }
    if primary not in names[base.name]:
        raise InputError(
            f"{base.name} has no metric {primary!r}", nearest(primary, names[base.name])
        )
    return replace(base, primary=primary, higher_is_better=primary not in ("rmse", "mae"))


def _fingerprint(name: str, train: Source, test: Source) -> str:
    """Hash the tensors; of datasets, which nobody reads completely, the code and the lengths."""
    if isinstance(train, TensorSource) and isinstance(test, TensorSource):
        tensors = (train.x, train.y, test.x, test.y)
        return splits.fingerprint_arrays(*(tensor.numpy() for tensor in tensors))
    code = Path(name.rpartition(":")[0]).read_text(encoding="utf-8")
    return splits.fingerprint_texts(
        (code, name.rpartition(":")[2], str(len(train)), str(len(test)))
    )
