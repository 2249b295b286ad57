"""Targets of tables and arrays: class indices, or standardised numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpss_cli.data import tasks
from lpss_cli.data.tasks import Task
from lpss_cli.errors import InputError


@dataclass(frozen=True)
class Targets:
    """Both parts' targets and what follows from them.

    Attributes:
        train: (N,) int64 class indices or float32 standardised values.
        test: (M,) the same.
        task: how they are trained and measured.
        outputs: how many numbers the network ends in.
        classes: names by index, empty for regression.
        scaling: for regression ``{"mean", "scale"}``: original = value · scale + mean.
    """

    train: Tensor
    test: Tensor
    task: Task
    outputs: int
    classes: tuple[str, ...] = ()
    scaling: dict[str, Any] = field(default_factory=dict)


def class_targets(train: Tensor, test: Tensor, classes: tuple[str, ...]) -> Targets:
    """Classification: (N,) and (M,) int64 indices into the class names.

    Raises:
        InputError: fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(
            f"there is nothing to tell apart: the only class is {', '.join(classes) or 'none'}",
            "give a target with at least two classes",
        )
    return Targets(train.long(), test.long(), tasks.CLASSIFICATION, len(classes), classes)


def scaled_targets(train: npt.NDArray[np.float64], test: npt.NDArray[np.float64]) -> Targets:
    """Regression on targets standardised by the training part: (N,) and (M,) values.

    Standardised because learning rates are made for outputs around 1. R² does not notice, and
    rmse and mae are multiplied back, so all metrics are in original units.
    """
    mean = float(train.mean())
    # Equal numbers can have a standard deviation of 1e-17; dividing by that is noise.
    scale = 1.0 if train.max() == train.min() else float(train.std())

    def scaled(values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((values - mean) / scale).float()

    return Targets(
        scaled(train),
        scaled(test),
        tasks.regression(scale),
        outputs=1,
        scaling={"mean": mean, "scale": scale},
    )
