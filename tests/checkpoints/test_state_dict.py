"""Wrapped, masked and weight-normalized state_dicts become those of the bare network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from lpss_cli.checkpoints.state_dict import fold_state_dict, plan_folds


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_prefixes_are_stripped(prefix):
    state = network().state_dict()
    folded, notes = fold_state_dict({prefix + name: t for name, t in state.items()})
    assert list(folded) == list(state)
    assert all(folded[name] is t for name, t in state.items())
    assert len(notes) == prefix.count(".")


def test_a_prefix_of_some_names_is_part_of_them():
    state = {"module.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
    assert fold_state_dict(state) == (state, [])


def test_a_plain_state_dict_passes_unchanged():
    state = network().state_dict()
    folded, notes = fold_state_dict(state)
    assert folded == state
    assert notes == []


def test_prune_pairs_are_multiplied():
    model = network()
    prune.l1_unstructured(model[0], "weight", amount=20)
    prune.l1_unstructured(model[3], "weight", amount=5)
    prune.random_unstructured(model[3], "bias", amount=1)
    expected = {"0.weight": model[0].weight, "3.weight": model[3].weight, "3.bias": model[3].bias}
    folded, notes = fold_state_dict(model.state_dict())
    assert set(folded) == set(network().state_dict())
    for name, tensor in expected.items():
        assert torch.equal(folded[name], tensor)
    assert [int((folded[name] == 0).sum()) for name in expected] == [20, 5, 1]
    assert sorted(notes) == ["folded 0.weight", "folded 3.bias", "folded 3.weight"]
    with torch.device("meta"):  # the same without values
        shapes = {name: torch.empty(t.shape) for name, t in model.state_dict().items()}
    folds, planned_notes = plan_folds(shapes)
    assert (list(folds), planned_notes) == (list(folded), notes)
    assert folds["3.bias"].sources == ("3.bias_orig", "3.bias_mask")
    assert {name for name, fold in folds.items() if fold.combine} == set(expected)


@pytest.mark.parametrize("weight", [torch.float32, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("mask", [torch.float32, torch.bool, torch.uint16, torch.float8_e4m3fn])
def test_masks_may_have_any_dtype(weight, mask):
    values, kept = torch.tensor([[3.0, -4.0]]).to(weight), torch.tensor([[0.0, 1.0]]).to(mask)
    folded, _ = fold_state_dict({"w_orig": values, "w_mask": kept})
    assert folded["w"].dtype == weight
    assert folded["w"].tolist() == [[0.0, -4.0]]


def test_a_mask_without_its_weight_stays():
    state = {"attn_mask": torch.ones(2), "w_orig": torch.ones(2)}
    assert fold_state_dict(state) == (state, [])


SHAPES = [(4, 6), (4, 2, 3), (4, 2, 3, 3), (1, 6), (4, 1), (1, 1)]


def weight_normed_layer(shape: tuple[int, ...], dim: int | None) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.randn(shape))
    layer = weight_norm(layer, dim=dim)
    with torch.no_grad():  # away from the start, where g v/‖v‖ = v
        layer.parametrizations.weight.original0.mul_(1.7).add_(0.1)
    return layer


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prefix", ["", "features.3."])
def test_weight_norm_parametrizations_equal_the_modules_weight(shape, dim, prefix):
    layer = weight_normed_layer(shape, dim)
    folded, notes = fold_state_dict({prefix + name: t for name, t in layer.state_dict().items()})
    assert list(folded) == [prefix + "weight"]
    torch.testing.assert_close(folded[prefix + "weight"], layer.weight.detach())
    assert notes == [f"folded {prefix}weight"]


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_old_style_weight_norm_equals_the_modules_weight(shape, dim):
    layer = weight_normed_layer(shape, dim)
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    folded, _ = fold_state_dict(
        {"3.bias": torch.ones(4), "3.weight_g": g.detach(), "3.weight_v": v.detach()}
    )
    assert list(folded) == ["3.bias", "3.weight"]
    torch.testing.assert_close(folded["3.weight"], layer.weight.detach())


def test_weight_norm_by_hand():
    v, g = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[10.0], [3.0]])
    for dtype in (torch.float32, torch.float8_e4m3fn):  # which has all these numbers
        folded, _ = fold_state_dict({"weight_g": g.to(dtype), "weight_v": v.to(dtype)})
        torch.testing.assert_close(folded["weight"], torch.tensor([[6.0, 8.0], [0.0, -3.0]]))


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((4,), (4,)), ((2, 1), (3, 4))])
def test_other_parameters_named_g_and_v_stay(shapes):
    state = {f"attn.w_{x}": torch.ones(s) for x, s in zip("gv", shapes, strict=True)}
    assert fold_state_dict(state) == (state, [])
