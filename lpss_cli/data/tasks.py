"""Tasks: the loss that a network is trained with, and the metrics that it is judged by.

The metrics are scikit-learn's. This module adds shape checks, errors in original units, and
defined values for the cases in which scikit-learn warns or fails: classes without examples,
constant targets, and outputs of a network that has diverged. :class:`Targets` are those of tables
and arrays: class indices, or standardized numbers, with the task that fits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpss_cli.data.scaling import FloatArray, Scaler
from lpss_cli.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
Metrics = Callable[[Tensor, Tensor], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A loss, the metrics, and the one metric that runs are compared by.

    Attributes:
        name: ``classification``, ``regression``, or ``custom`` if a factory brings its own.
        loss: (outputs, targets) -> scalar tensor, a mean over the examples.
        metrics: (outputs, targets) of a whole split -> values by name.
        primary: the name of the metric that runs are compared by.
        higher_is_better: whether larger values of the primary metric are better.
    """

    name: str
    loss: Loss
    metrics: Metrics
    primary: str
    higher_is_better: bool = True


def regression(unit: float) -> Task:
    """Return the task of regression on standardized targets, with errors in original units.

    Args:
        unit: the standard deviation that the targets were divided by, > 0. ``rmse`` and ``mae``
            are multiplied by it; R² does not depend on it.
    """
    metrics = partial(_regression_metrics, unit=unit)
    return Task("regression", _squared_error, metrics, primary="r2")


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) and class indices (N,)."""
    return F.cross_entropy(outputs, targets)


def _classification_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute accuracy and balanced accuracy, fractions in [0, 1].

    Args:
        outputs: (N, C) scores; the prediction is the arg max, the first one at a tie.
        targets: (N,) class indices in [0, C).

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall over the classes that occur in the
        targets (a class without examples has no recall, and does not count as 0).

    Raises:
        InputError: shapes that do not match, or no example at all.
    """
    from sklearn.metrics import accuracy_score, recall_score

    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or not len(targets):
        raise InputError(
            f"classification metrics need outputs (N, C) and targets (N,) with N >= 1, got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}",
            "give the network one output per class",
        )
    true, predicted = targets.cpu().numpy(), outputs.argmax(dim=1).cpu().numpy()
    # Not balanced_accuracy_score, which warns of predicted classes that are not in the targets.
    present = targets.cpu().bincount().nonzero().flatten().numpy()
    recalls = recall_score(true, predicted, labels=present, average=None).tolist()
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": sum(recalls) / len(recalls),
    }


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs and targets, each (N, 1) or (N,)."""
    predicted, true = _flatten_pair(outputs, targets)
    return F.mse_loss(predicted, true)


def _regression_metrics(outputs: Tensor, targets: Tensor, *, unit: float = 1.0) -> dict[str, float]:
    """Compute R², the root mean squared error and the mean absolute error.

    Args:
        outputs: (N, 1) or (N,) predictions.
        targets: (N, 1) or (N,) true values on the same scale.
        unit: how many original units one unit of the targets is; scales ``rmse`` and ``mae``.

    Returns:
        ``r2`` in (-inf, 1], and 0 for constant targets, for which it is undefined; ``rmse``;
        ``mae``. NaN or infinite outputs give NaN or infinite values.

    Raises:
        InputError: shapes that do not match, or no example at all.
    """
    from sklearn import config_context
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    predicted, true = (
        values.detach().cpu().double().numpy() for values in _flatten_pair(outputs, targets)
    )
    if not len(true):
        raise InputError("there is no example to evaluate", "give the split at least one example")
    # Decided by the values: their mean may be rounded, and their variance tiny instead of 0.
    constant = true.max() == true.min()
    # scikit-learn refuses NaN and infinities, but the outputs of a diverged network hold them.
    with config_context(assume_finite=True):
        return {
            "r2": 0.0 if constant else float(r2_score(true, predicted)),
            "rmse": float(root_mean_squared_error(true, predicted)) * unit,
            "mae": float(mean_absolute_error(true, predicted)) * unit,
        }


def _flatten_pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten outputs and targets, each (N,) or (N, 1), to (N,).

    Without it, (N, 1) minus (N,) would broadcast to (N, N) silently.

    Raises:
        InputError: other shapes, or different lengths.
    """

    def is_column(values: Tensor) -> bool:
        return values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)

    if not (is_column(outputs) and is_column(targets)) or len(outputs) != len(targets):
        raise InputError(
            f"regression needs outputs and targets of (N, 1) or (N,), got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}",
            "give the network one output, or return your own loss from file.py:factory",
        )
    return outputs.reshape(-1), targets.reshape(-1)


CLASSIFICATION = Task("classification", _cross_entropy, _classification_metrics, primary="accuracy")
REGRESSION = Task("regression", _squared_error, _regression_metrics, primary="r2")


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
    return Targets(train.long(), test.long(), CLASSIFICATION, len(classes), classes)


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
        regression(scale),
        outputs=1,
        scaling={"mean": float(scaler.mean_[0]), "scale": scale},
    )
