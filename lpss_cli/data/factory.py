"""Anything else: a Python function, typed on the command line, that returns the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from lpss_cli.data import augment as augmentation
from lpss_cli.data import fingerprint
from lpss_cli.data.bundle import Data
from lpss_cli.data.factory_task import make_task, read_facts
from lpss_cli.data.sources import DatasetSource, Source, TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.workers import as_input, as_target
from lpss_cli.errors import InputError, nearest
from lpss_cli.utils.user_code import call_function, is_import_path

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
    facts = read_facts(given, train, test)
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
        return fingerprint.of_arrays(*(tensor.numpy() for tensor in tensors))
    code = Path(name.rpartition(":")[0]).read_text(encoding="utf-8")
    return fingerprint.of_texts((code, name.rpartition(":")[2], str(len(train)), str(len(test))))
