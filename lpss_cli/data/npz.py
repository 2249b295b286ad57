"""A NumPy archive: ``x_train``, ``y_train``, ``x_test``, ``y_test`` in one ``.npz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpss_cli.data import augment as augmentation
from lpss_cli.data import datasets, splits
from lpss_cli.data.bundle import Data
from lpss_cli.data.scaling import FloatArray, Scaler
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.tasks import Targets, class_targets, scaled_targets
from lpss_cli.errors import InputError, one_line

KEYS = ("x_train", "y_train", "x_test", "y_test")
Array = npt.NDArray[Any]


def load(spec: DataSpec) -> Data:
    """Read an archive, without ever unpickling an object in it.

    Inputs: uint8 with three axes are gray images (N, H, W). uint8 with four axes are images
    (N, H, W, C) if the last axis has 1, 3 or 4 entries, and (N, C, H, W) otherwise. Both are
    divided by 255. Anything else is taken as it is: (N, F) features, or (N, C, ...) with channels
    second. The inputs are then standardized per channel or feature by the training part, or by
    ``--mean`` and ``--std``.

    Targets (N,) or (N, 1): whole numbers, booleans and texts are classes (sorted; each class of
    the test part must occur in training), and floating-point numbers are regression.

    Raises:
        InputError: an array is missing, has the wrong length or type, or is not finite; by name.
    """
    refuse(spec, "an array file", "target", "drop", "split_seed")
    arrays = _read(Path(spec.name))
    _check(arrays)
    targets = _make_targets(arrays["y_train"].reshape(-1), arrays["y_test"].reshape(-1))
    name = Path(spec.name).stem
    if arrays["x_train"].dtype == np.uint8 and arrays["x_train"].ndim in (3, 4):
        train, test = (torch.from_numpy(_channels_first(arrays[k])) for k in ("x_train", "x_test"))
        return datasets.build_image_data(spec, name, datasets.RawImages(train, test, targets))
    return _build_feature_data(spec, name, arrays, targets)


def _read(path: Path) -> dict[str, Array]:
    """Read the four arrays."""
    try:
        # Opened here: np.load leaves its own handle open when the archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in KEYS if key not in archive]
            if missing:
                raise InputError(
                    f"{path} lacks {', '.join(missing)} (it has {', '.join(archive) or 'nothing'})",
                    f"save it with np.savez(path, {', '.join(f'{k}=…' for k in KEYS)})",
                )
            arrays = {key: archive[key] for key in KEYS}
            for key, array in arrays.items():
                if not isinstance(array, np.ndarray):  # bytes, where the member is not an array
                    raise ValueError(f"{key} is not an array")
            return arrays
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes zipfile and numpy raise
        raise InputError(
            f"{path} cannot be read: {one_line(error)}",
            "save plain arrays with np.savez; Python objects are refused",
        ) from error


def _check(arrays: dict[str, Array]) -> None:
    """Check types, lengths and shapes, and that all values are finite."""
    for key, array in arrays.items():
        kinds = "biuf" if key[0] == "x" else "biufU"
        if array.dtype.kind not in kinds or not array.ndim:
            raise InputError(
                f"{key} is {array.dtype} of shape {array.shape}",
                "give numbers, one row per example",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{key} holds NaN or infinite values", "remove or replace them")
        if key[0] == "y" and array.shape[1:] not in ((), (1,)):
            raise InputError(
                f"{key} has shape {array.shape}",
                "give one target per example, or your own loss with file.py:factory",
            )
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(x) != len(y) or not len(x):
            raise InputError(
                f"x_{part} has {len(x)} examples and y_{part} has {len(y)}",
                "give the same number of both, at least one",
            )
    inputs = [arrays[key] for key in ("x_train", "x_test")]
    train, test = ((x.shape[1:], x.dtype == np.uint8) for x in inputs)
    if train != test:
        described = [f"{x.dtype} {x.shape}" for x in inputs]
        raise InputError(
            f"x_train is {described[0]} and x_test is {described[1]}",
            "give both the same type and shape after the first axis",
        )


def _make_targets(train: Array, test: Array) -> Targets:
    """Make targets from (N,) and (M,) values, by their type."""
    if train.dtype.kind != test.dtype.kind and "f" in (train.dtype.kind, test.dtype.kind):
        raise InputError(
            f"y_train is {train.dtype} and y_test is {test.dtype}", "give both the same type"
        )
    if train.dtype.kind == "f":
        return scaled_targets(train.astype(np.float64), test.astype(np.float64))
    labels = np.unique(train)
    unknown = np.setdiff1d(test, labels)
    if len(unknown):
        raise InputError(
            f"y_test holds the class {unknown[0]}, which y_train lacks",
            "give the training part examples of every class",
        )
    y_train, y_test = (torch.from_numpy(np.searchsorted(labels, y)) for y in (train, test))
    return class_targets(y_train, y_test, tuple(str(label) for label in labels))


def _channels_first(images: Array) -> Array:
    """Return uint8 images as (N, C, H, W), by the rule in :func:`load`."""
    if images.ndim == 3:
        return images[:, None]
    if images.shape[-1] in (1, 3, 4):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images


def _build_feature_data(
    spec: DataSpec, name: str, arrays: dict[str, Array], targets: Targets
) -> Data:
    """Standardize anything that is not uint8 images: (N,), (N, F) or (N, C, ...)."""
    refuse(spec, "arrays that are not uint8 images", "image_size")
    x_train, x_test = (arrays[key].astype(np.float64) for key in ("x_train", "x_test"))
    shape = x_train.shape[1:] or (1,)

    def to_rows(x: FloatArray) -> FloatArray:
        # Channels last, and everything else in one axis: (N, C, ...) -> (N · ..., C).
        return np.moveaxis(x.reshape(len(x), shape[0], -1), 1, 2).reshape(-1, shape[0])

    scaler = _fit_scaler(spec, to_rows(x_train))

    def make_source(x: FloatArray, y: torch.Tensor) -> TensorSource:
        scaled = scaler.transform(to_rows(x)).reshape(len(x), -1, shape[0])
        values = np.moveaxis(scaled, 2, 1).reshape(len(x), *shape)
        return TensorSource(torch.from_numpy(np.ascontiguousarray(values)).float(), y)

    preprocessing: dict[str, Any] = {
        "kind": "array",
        "mean": scaler.mean.tolist(),
        "std": scaler.scale.tolist(),
    }
    if targets.scaling:
        preprocessing["target"] = targets.scaling
    return Data(
        spec=spec,
        name=name,
        train=make_source(x_train, targets.train),
        test=make_source(x_test, targets.test),
        task=targets.task,
        input_shape=tuple(shape),
        outputs=targets.outputs,
        classes=targets.classes,
        preprocessing=preprocessing,
        fingerprint=splits.fingerprint_arrays(*(arrays[key] for key in KEYS)),
        augment=augmentation.for_shape(spec.augment or "none", tuple(shape)),
    )


def _fit_scaler(spec: DataSpec, x: FloatArray) -> Scaler:
    """Fit the training part (N, F); ``--mean`` and ``--std`` replace what is measured."""
    mean, scale = (
        None if values is None else np.array(datasets.per_channel(values, x.shape[1], option))
        for option, values in (("mean", spec.mean), ("std", spec.std))
    )
    return Scaler.fit(x).replace(mean, scale)
