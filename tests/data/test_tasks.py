from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from lpss_cli.data import tasks
from lpss_cli.errors import InputError


def test_accuracies_of_a_hand_computed_confusion():
    # Class 0: 3 of 4 right, class 1: 1 of 2 right, class 2 does not occur in the targets.
    predicted = [0, 0, 0, 2, 1, 0]
    outputs = torch.nn.functional.one_hot(tensor(predicted), 3).float()
    metrics = tasks.CLASSIFICATION.metrics(outputs, tensor([0, 0, 0, 0, 1, 1]))
    assert metrics == {"accuracy": 4 / 6, "balanced_accuracy": (3 / 4 + 1 / 2) / 2}


def test_cross_entropy_of_equal_scores_is_log_of_the_number_of_classes():
    loss = tasks.CLASSIFICATION.loss(torch.zeros(5, 4), tensor([0, 1, 2, 3, 0]))
    assert loss.item() == pytest.approx(math.log(4))


def test_regression_by_hand():
    # Errors 1, -1, 0, 2: squares sum to 6; targets spread 5 around their mean 2.5.
    outputs, targets = tensor([[2.0], [1.0], [3.0], [6.0]]), tensor([1.0, 2.0, 3.0, 4.0])
    metrics = tasks.REGRESSION.metrics(outputs, targets)
    assert metrics == {"r2": 1 - 6 / 5, "rmse": math.sqrt(6 / 4), "mae": 1.0}
    assert tasks.REGRESSION.loss(outputs, targets).item() == 1.5
    assert tasks.REGRESSION.loss(outputs, targets[:, None]).item() == 1.5


def test_r2_of_constant_targets_is_zero():
    # 0.1 is not a binary fraction: the mean of many of them is not exactly 0.1.
    constant = torch.full((7,), 0.1)
    metrics = tasks.REGRESSION.metrics(torch.arange(7.0), constant)
    assert metrics["r2"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())


def test_original_units_scale_the_errors_and_not_r2():
    outputs, targets = tensor([1.0, 2.0, 4.0]), tensor([1.0, 2.0, 3.0])
    plain = tasks.REGRESSION.metrics(outputs, targets)
    scaled = tasks.regression(10.0).metrics(outputs, targets)
    assert scaled["r2"] == plain["r2"]
    assert scaled["mae"] == pytest.approx(10 * plain["mae"])
    assert scaled["rmse"] == pytest.approx(10 * plain["rmse"])
    in_units = tasks.REGRESSION.metrics(10 * outputs, 10 * targets)
    assert scaled == pytest.approx(in_units)


def test_metrics_do_not_need_outputs_without_gradient():
    outputs = torch.zeros(3, 1, requires_grad=True)
    assert tasks.REGRESSION.metrics(outputs, torch.ones(3))["mae"] == 1.0


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (tasks.CLASSIFICATION, torch.zeros(3), torch.zeros(3).long()),
        (tasks.CLASSIFICATION, torch.zeros(3, 2), torch.zeros(2).long()),
        (tasks.CLASSIFICATION, torch.zeros(0, 2), torch.zeros(0).long()),
        (tasks.REGRESSION, torch.zeros(3, 2), torch.zeros(3)),
        (tasks.REGRESSION, torch.zeros(3, 1), torch.zeros(2)),
        (tasks.REGRESSION, torch.zeros(0, 1), torch.zeros(0)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(task, outputs, targets):
    with pytest.raises(InputError) as caught:
        task.metrics(outputs, targets)
    assert caught.value.do
