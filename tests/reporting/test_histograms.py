"""How weights were spread before training: remembered, and checked when it is read."""

from __future__ import annotations

import json

import pytest
import torch

from lpss_cli.checkpoints.metadata import HISTOGRAMS, drop_invalid
from lpss_cli.reporting import histograms
from lpss_cli.reporting.layers import measure

GOOD = {"low": -1.0, "high": 1.0, "counts": [0, 3]}


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "low": 2.0},
        {**GOOD, "low": float("nan")},
        {**GOOD, "high": "1"},
        {**GOOD, "counts": []},
        {**GOOD, "counts": [0, 0]},
        {**GOOD, "counts": [1, -1]},
        {**GOOD, "counts": [1] * 1001},
        {"low": 0.0, "counts": [1]},
        {**GOOD, "low": -1.7e308, "high": 1.7e308},
        {**GOOD, "outside": 2},
        {**GOOD, "outside": 0, "ends": [-1.0, 40.0]},
        {**GOOD, "outside": 2, "ends": [-0.5, 40.0]},
        {**GOOD, "outside": 2, "ends": [-1.0, float("inf")]},
        {**GOOD, "outside": 2, "ends": "far"},
        [],
    ],
)
def test_histograms_of_a_record_are_checked(bad):
    assert drop_invalid({"histograms": {"w": GOOD}}) == ({"histograms": {"w": GOOD}}, [])
    assert drop_invalid({"histograms": {"w": bad}}) == ({}, ["histograms"])


def test_what_is_remembered_of_a_network_is_what_a_record_takes():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.Linear(2, 1), torch.nn.Linear(1, 30)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0, 3.0], [-1.0, 0.0, 3.0]]))
        model[1].weight.zero_()
        model[2].weight.fill_(0.5)[0, 0] = 40
    record = {HISTOGRAMS: histograms.of_model(model)}
    assert drop_invalid(record) == (record, [])
    found, far = histograms.of_record(record).values()
    assert (far.low, far.high, far.outside, far.ends) == (0.5, 0.5, 1, (0.5, 40.0))
    assert json.loads(json.dumps(record)) == record
    whole = measure("0.weight", model[0].weight).survivors
    assert whole is not None
    assert (found.low, found.high, found.counts) == (-1.0, 3.0, whole.counts)
    assert histograms.of_record({}) == {}
