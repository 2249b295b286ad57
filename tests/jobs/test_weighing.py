"""What is left without dead units, against networks small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpss_cli import models
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.errors import InputError
from lpss_cli.jobs.report import QUICK, savings, with_savings
from lpss_cli.reporting.report import report

META = {"arch": "lenet5", "input_shape": [1, 28, 28], "outputs": 10}


def checkpoint(arch: str, meta: dict | None = None, dead: dict[str, int] | None = None):
    """A network whose first rows of some layers are zero, biases too."""
    torch.manual_seed(0)
    state = models.build(arch, (1, 28, 28), 10).state_dict()
    for layer, count in (dead or {}).items():
        state[f"{layer}.weight"][:count] = 0
        state[f"{layer}.bias"][:count] = 0
    return Checkpoint(Path("m.pt"), state, {**META, "arch": arch} if meta is None else meta)


def test_operations_of_lenet_300_in_closed_form():
    whole = savings(checkpoint("lenet300"))
    assert whole.flops == (2 * (784 * 300 + 300 * 100 + 100 * 10),) * 2
    assert not whole.changed
    found = savings(checkpoint("lenet300", dead={"fc1": 60, "fc2": 40}))
    assert found.flops[1] == 2 * (784 * 240 + 240 * 60 + 60 * 10)
    assert found.parameters == (266_610, 785 * 240 + 241 * 60 + 61 * 10)
    assert found.to_dict()["flops"] == list(found.flops)


def test_operations_of_lenet_5_in_closed_form():
    found = savings(checkpoint("lenet5", dead={"conv2": 10, "fc1": 100}))
    # 5×5 kernels without padding, halved by pooling: 24×24 and 8×8 positions, then 4×4 a channel.
    before = 25 * 20 * 24**2 + 25 * 20 * 50 * 8**2 + 16 * 50 * 500 + 500 * 10
    after = 25 * 20 * 24**2 + 25 * 20 * 40 * 8**2 + 16 * 40 * 400 + 400 * 10
    assert found.flops == (2 * before, 2 * after) == (4_586_000, 3_656_000)


def test_a_report_shows_live_shapes_where_the_network_is_known():
    source = checkpoint("lenet300", dead={"fc1": 60})
    found = with_savings(report(source), source)
    assert [found.live_shape(layer) for layer in found.layers] == [
        (240, 784),
        (100, 240),
        (10, 100),
    ]
    with pytest.raises(InputError, match="nosuch"):
        with_savings(report(source), source, "nosuch")
    for other in (replace(source, stream=object()), checkpoint("lenet300", {})):
        assert with_savings(report(source), other).live is None
        with pytest.raises(InputError) as error:
            with_savings(report(source), other, "lenet300")
        assert "--sizes" in error.value.do
    large = replace(report(source), parameters=QUICK + 1)
    assert with_savings(large, source).live is None
    assert with_savings(large, source, "lenet300").live is not None
    bare = checkpoint("lenet300", {})
    assert with_savings(report(bare), bare).live is None
    assert report(bare).live_shape(report(bare).layers[0]) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"arch": None}, "does not say which network"),
        ({"arch": "net.py:factory"}, "not imported unless you ask for it"),
        ({"arch": "lenet300"}, "is missing"),
        ({"input_shape": None}, "does not say what inputs"),
        ({"input_shape": [1, 10**6, 10**6]}, "does not say what inputs"),
        ({"outputs": 0}, "does not say what inputs"),
        ({"outputs": 10**12}, "m.pt"),
    ],
)
def test_a_record_that_does_not_fit_is_no_reason_to_fail(change, what):
    source = checkpoint("lenet5", {**META, **change})
    with pytest.raises(InputError, match=what):
        savings(source)
    assert with_savings(report(source), source).live is None


def test_a_network_that_is_not_for_such_numbers_is_not_tried(monkeypatch):
    def words(self, x):
        raise IndexError("no such word")

    source = checkpoint("lenet300")
    monkeypatch.setattr(torch.nn.Linear, "forward", words)
    with pytest.raises(InputError, match="cannot be tried: IndexError: no such word"):
        savings(source)
