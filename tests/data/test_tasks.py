from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from lpss_cli.data import tasks
from lpss_cli.errors import InputError


def test_accuracies_of_a_hand_computed_confusion():
    # Class 0: 3 of 4 right, class 1: 1 of 2 right, class 2 does not occur in the targets.
    predicted = [0, 0, 0, 2, 1, 0]
    outputs = torch.nn.functional.one_hot(tensor(predicted), 3).float()
    metrics = tasks.CLASSIFICATION.metrics(outputs, tensor([0, 0, 0, 0, 1, 1]))
    assert metrics == {"accuracy": 4 / 6, "balanced_accuracy": (3 / 4 + 1 / 2) / 2}


@given(st.data())
def test_accuracies_equal_their_definitions_to_the_last_bit(data):
    classes = data.draw(st.integers(1, 8))
    label = st.integers(0, classes - 1)
    pairs = data.draw(st.lists(st.tuples(label, label), min_size=1, max_size=60))
    true, predicted = zip(*pairs, strict=True)
    metrics = tasks.CLASSIFICATION.metrics(torch.eye(classes)[list(predicted)], tensor(true))
    recalls = [
        sum(t == p == c for t, p in pairs) / true.count(c) for c in range(classes) if c in true
    ]
    assert metrics == {
        "accuracy": sum(t == p for t, p in pairs) / len(pairs),
        "balanced_accuracy": sum(recalls) / len(recalls),
    }
    assert {type(value) for value in metrics.values()} == {float}


def test_one_class_alone_and_one_example_of_each():
    # None of these may warn. scikit-learn warns of predicted classes that are not in the targets,
    # and of targets with so many classes that they look like numbers.
    metrics = tasks.CLASSIFICATION.metrics(torch.eye(3), tensor([1, 1, 1]))
    assert metrics == {"accuracy": 1 / 3, "balanced_accuracy": 1 / 3}
    perfect = {"accuracy": 1.0, "balanced_accuracy": 1.0}
    assert tasks.CLASSIFICATION.metrics(torch.eye(30), torch.arange(30)) == perfect
    assert tasks.CLASSIFICATION.metrics(torch.zeros(1, 1), tensor([0])) == perfect


def test_predictions_of_a_diverged_network_are_counted():
    outputs = torch.full((4, 3), torch.nan)
    metrics = tasks.CLASSIFICATION.metrics(outputs, tensor([0, 0, 1, 2]))
    assert metrics == {"accuracy": 0.5, "balanced_accuracy": 1 / 3}


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


@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=2, max_size=40))
def test_regression_metrics_equal_the_textbook_formulas(pairs):
    predicted, true = np.array(pairs, dtype=np.float64).T
    outputs, targets = (tensor(values, dtype=torch.float32) for values in (predicted, true))
    metrics = tasks.REGRESSION.metrics(outputs[:, None], targets)
    residual, total = ((predicted - true) ** 2).sum(), ((true - true.mean()) ** 2).sum()
    r2 = 0.0 if true.max() == true.min() else 1 - residual / total
    # scikit-learn sums in another order, so the last digits may differ.
    assert metrics["r2"] == pytest.approx(r2, rel=1e-12, abs=1e-12)
    assert metrics["rmse"] == pytest.approx(math.sqrt(residual / len(true)), rel=1e-12)
    assert metrics["mae"] == pytest.approx(np.abs(predicted - true).mean(), rel=1e-12)
    assert {type(value) for value in metrics.values()} == {float}


def test_outputs_of_a_diverged_network_give_values_that_say_so():
    targets = tensor([0.0, 1.0, 3.0])
    metrics = tasks.REGRESSION.metrics(tensor([math.nan, 1.0, 2.0]), targets)
    assert all(math.isnan(value) for value in metrics.values())
    metrics = tasks.REGRESSION.metrics(tensor([math.inf, 1.0, 2.0]), targets)
    assert metrics == {"r2": -math.inf, "rmse": math.inf, "mae": math.inf}


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
