"""Targets of tables and arrays: class indices, or standardized numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lpss_cli.data import tasks
from lpss_cli.data.scaling import FloatArray, Scaler
from lpss_cli.data.tasks import Task
from lpss_cli.errors import InputError


@dataclass(frozen=True)
class Targets:
    """The targets of both parts, and what follows from them.

    Attributes:
        train: (N,) int64 class indices or float32 standardized values.
        test: (M,) the same.
        task: the loss and the metrics.
        outputs: number of outputs of the network.
        classes: class names by index, empty for regression.
        scaling: for regression ``{"mean", "scale"}``: original = value · scale + mean.
    """

    train: Tensor
    test: Tensor
    task: Task
    outputs: int
    classes: tuple[str, ...] = ()
    scaling: dict[str, Any] = field(default_factory=dict)


def class_targets(train: Tensor, test: Tensor, classes: tuple[str, ...]) -> Targets:
    """Make targets of classification from (N,) and (M,) int64 indices into the class names.

    Raises:
        InputError: fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(
            f"there is nothing to classify: the only class is {', '.join(classes) or 'none'}",
            "give a target with at least two classes",
        )
    return Targets(train.long(), test.long(), tasks.CLASSIFICATION, len(classes), classes)


def scaled_targets(train: FloatArray, test: FloatArray) -> Targets:
    """Make targets of regression, (N,) and (M,), standardized by the training part.

    Learning rates are tuned for outputs of about 1. R² does not depend on the scale, and ``rmse``
    and ``mae`` are multiplied by it, so all metrics are in original units.
    """
    # The StandardScaler itself: where the training part is constant, the test part may not be.
    scaler = Scaler.fit(train[:, None]).standard
    scale = float(scaler.scale_[0])

    def standardize(values: FloatArray) -> Tensor:
        return torch.from_numpy(scaler.transform(values[:, None])[:, 0]).float()

    return Targets(
        standardize(train),
        standardize(test),
        tasks.regression(scale),
        outputs=1,
        scaling={"mean": float(scaler.mean_[0]), "scale": scale},
    )
