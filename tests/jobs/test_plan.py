"""What a plan promises before training."""

from __future__ import annotations

import pytest
import torch

from lpss_cli.errors import InputError
from lpss_cli.jobs.plan import plan
from lpss_cli.models import build
from lpss_cli.sparsity.hoyer_prediction import predicted_hoyer, suitable_p
from lpss_cli.sparsity.prunable import Weight, prunable_weights


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return prunable_weights(build("mlp:64-32-16-10", (64,), 10))


def test_the_budgets_sum_to_the_target_exactly(weights):
    for sparsity in (0.0, 0.5, 0.9, 0.99):
        for ranking in ("balanced", "magnitude", "lamp", "uniform", "erk"):
            found = plan("net", weights, sparsity=sparsity, options={"ranking": ranking})
            assert found.kept == found.weights - round(sparsity * found.weights)
            assert found.weights == 64 * 32 + 32 * 16 + 160


def test_predictions_are_those_of_p_and_fan_in(weights):
    first, _, last = plan("net", weights, sparsity=0.9, options={"off_sphere": ("fc3",)}).layers
    assert first.fan_in == 64
    assert first.p == suitable_p(64, 0.9)
    assert first.hoyer == predicted_hoyer(first.p, 64)
    assert first.hoyer_at_target == predicted_hoyer(first.p, 64, 1 - first.kept / first.weights)
    assert (last.p, last.hoyer, last.hoyer_limit, last.hoyer_at_target) == (None,) * 4


def test_nothing_is_predicted_below_p_of_one(weights):
    first = plan("net", weights, sparsity=0.9, options={"p": ("0.5",)}).layers[0]
    assert first.p == 0.5
    assert first.hoyer is None


def test_a_wished_hoyer_gives_every_sphere_its_p(weights):
    layers = plan("net", weights, sparsity=0.9, hoyer=0.6).layers
    assert [layer.hoyer for layer in layers] == pytest.approx([0.6, 0.6, 0.6], abs=1e-3)
    assert len({layer.p for layer in layers}) == 3


def test_skipped_weights_are_in_no_budget(weights):
    found = plan("net", weights, sparsity=0.5, skip=("fc1",))
    assert [layer.name for layer in found.layers] == ["fc2.weight", "fc3.weight"]


def test_the_document_repeats_the_totals(weights):
    document = plan("net", weights, sparsity=0.5).to_dict()
    assert document["kept"] == sum(layer["kept"] for layer in document["layers"])


def test_weights_of_rows_that_are_no_slices_are_planned_off_the_sphere():
    odd = {name: Weight(name, torch.randn(4, 9), dim) for name, dim in (("a", None), ("b", 0))}
    first, last = plan("net", odd, sparsity=0.5).layers
    assert (first.p, first.fan_in) == (None, None)
    assert last.p is not None


def test_what_cannot_be_planned_is_refused(weights):
    with pytest.raises(InputError, match="exclude each other"):
        plan("net", weights, sparsity=0.9, options={"p": ("1.2",)}, hoyer=0.5)
    with pytest.raises(InputError, match=r"no p gives fc1\.weight"):
        plan("net", weights, sparsity=0.9, hoyer=0.99)
    with pytest.raises(InputError, match="holds no prunable weight"):
        plan("net", {}, sparsity=0.9)
    with pytest.raises(InputError, match="outside"):
        plan("net", weights, sparsity=1.0)
    with pytest.raises(InputError, match="--skip"):
        plan("net", weights, sparsity=0.5, skip=("nothing",))
