"""What a network is trained for: a loss and the metrics that say how well it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lpss_cli.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
Metrics = Callable[[Tensor, Tensor], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A loss, the metrics and the one metric that counts.

    Attributes:
        name: ``classification``, ``regression``, or ``custom`` for a factory's own.
        loss: (outputs, targets) -> scalar tensor, a mean over the examples.
        metrics: (outputs, targets) of the whole split -> numbers by name.
        primary: the name of the metric that runs are compared by.
        higher_is_better: the direction of the primary metric.
    """

    name: str
    loss: Loss
    metrics: Metrics
    primary: str
    higher_is_better: bool = True


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) and class indices (N,)."""
    return F.cross_entropy(outputs, targets)


def _class_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy and balanced accuracy, fractions in [0, 1].

    Args:
        outputs: (N, C) scores; the prediction is the arg max, the first one at a tie.
        targets: (N,) class indices in [0, C).

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall over the classes that occur in the
        targets (a class without examples has no recall and does not count as 0).

    Raises:
        InputError: shapes that do not fit, or no example at all.
    """
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or not len(targets):
        raise InputError(
            f"classification metrics need outputs (N, C) and targets (N,) with N >= 1, got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}",
            "let the network end in one output per class",
        )
    hits = outputs.argmax(dim=1) == targets
    support = torch.bincount(targets, minlength=outputs.shape[1])
    correct = torch.bincount(targets[hits], minlength=len(support))
    present = support > 0
    # Python numbers, not device floats: MPS knows no float64 and a fraction deserves it.
    recalls = [
        c / s for c, s in zip(correct[present].tolist(), support[present].tolist(), strict=True)
    ]
    return {
        "accuracy": int(hits.sum()) / len(targets),
        "balanced_accuracy": sum(recalls) / len(recalls),
    }


def _pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten outputs and targets, each (N,) or (N, 1), to (N,).

    Flattened on purpose: (N, 1) minus (N,) would broadcast to (N, N) without a word.
    """

    def single(t: Tensor) -> bool:
        return t.ndim == 1 or (t.ndim == 2 and t.shape[1] == 1)

    if not (single(outputs) and single(targets)) or len(outputs) != len(targets):
        raise InputError(
            f"regression needs outputs and targets of (N, 1) or (N,), got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}",
            "let the network end in one output, or give your own loss with file.py:factory",
        )
    return outputs.reshape(-1), targets.reshape(-1)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of (N, 1) or (N,) outputs and targets."""
    predicted, wanted = _pair(outputs, targets)
    return F.mse_loss(predicted, wanted)


def _regression_metrics(outputs: Tensor, targets: Tensor, *, unit: float = 1.0) -> dict[str, float]:
    """R², root mean squared error and mean absolute error.

    Args:
        outputs: (N, 1) or (N,) predictions.
        targets: (N, 1) or (N,) true values on the same scale.
        unit: how many original units one unit of the targets is; scales rmse and mae.

    Returns:
        ``r2`` in (-inf, 1], 0 for constant targets where it has no meaning; ``rmse``, ``mae``.

    Raises:
        InputError: shapes that do not fit, or no example at all.
    """
    predicted, wanted = (t.detach().cpu().double() for t in _pair(outputs, targets))
    if not len(wanted):
        raise InputError("there is no example to evaluate", "give the split at least one example")
    error = predicted - wanted
    residual = float(error.square().sum())
    total = float((wanted - wanted.mean()).square().sum())
    # Compared by values: the mean of equal numbers may be off by a rounding and total tiny.
    constant = bool(wanted.max() == wanted.min())
    return {
        "r2": 0.0 if constant else 1.0 - residual / total,
        "rmse": (residual / len(wanted)) ** 0.5 * unit,
        "mae": float(error.abs().mean()) * unit,
    }


CLASSIFICATION = Task("classification", _cross_entropy, _class_metrics, primary="accuracy")
REGRESSION = Task("regression", _squared_error, _regression_metrics, primary="r2")


def regression(unit: float) -> Task:
    """Regression on standardised targets whose rmse and mae are given in original units.

    Args:
        unit: the standard deviation the targets were divided by, > 0. R² does not depend on it.
    """
    return Task("regression", _squared_error, partial(_regression_metrics, unit=unit), primary="r2")
