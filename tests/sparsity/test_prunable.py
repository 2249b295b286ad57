"""Which parameters are prunable weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.sparsity.patterns import prunable_names
from lpss_cli.sparsity.prunable import prunable_weights, reparametrized_weights


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.grouped = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.embedding = nn.Embedding(5, 8)
        self.norm = nn.LayerNorm([4, 8])
        self.attn = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=3, vdim=5)
        self.head = nn.Linear(8, 2)


def test_linear_convolution_and_attention_weights_in_module_order():
    assert list(prunable_weights(Everything())) == [
        "conv.weight",
        "up.weight",
        "grouped.weight",
        "attn.in_proj_weight",
        "attn.out_proj.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
        "head.weight",
    ]


def test_weights_are_the_models_own_parameters_under_their_names():
    model = Everything()
    parameters = dict(model.named_parameters())
    assert all(w.tensor is parameters[name] for name, w in prunable_weights(model).items())


def test_the_dimension_that_counts_neurons():
    dims = {name: w.row_dim for name, w in prunable_weights(Everything()).items()}
    assert dims.pop("up.weight") == 1  # (in, out, kH, kW)
    assert dims.pop("grouped.weight") is None
    assert set(dims.values()) == {0}


def test_a_tied_weight_is_listed_once():
    first = nn.Linear(6, 6)
    model = nn.Sequential(first, nn.ReLU(), first, nn.Linear(6, 6))
    model[3].weight = first.weight
    assert list(prunable_weights(model)) == ["0.weight"]


def test_a_bare_layer_has_a_name():
    assert list(prunable_weights(nn.Linear(2, 2))) == ["weight"]
    assert list(prunable_weights(nn.MultiheadAttention(4, 2))) == [
        "in_proj_weight",
        "out_proj.weight",
    ]


def test_a_weight_that_is_computed_from_others_is_named_and_not_touched():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(spectral, nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert prunable_weights(model) == {}
    assert reparametrized_weights(model) == ["0.weight", "1.weight"]
    # In training mode, reading a spectral norm's weight changes its vectors.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert reparametrized_weights(Everything()) == []
    assert reparametrized_weights(spectral) == ["weight"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_without_weights_has_nothing_to_prune():
    assert list(prunable_weights(nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2)))) == ["1.weight"]


def test_a_lazy_layer_must_have_seen_an_example():
    with pytest.raises(InputError, match=r"1\.weight has no shape yet"):
        prunable_weights(nn.Sequential(nn.ReLU(), nn.LazyLinear(2)))


def test_names_of_a_bare_state_dict_are_guessed_like_the_models():
    model = Everything()
    assert set(prunable_names(model.state_dict())) == set(prunable_weights(model))


def test_a_bare_state_dict_is_judged_by_name_shape_and_type():
    two = torch.zeros(2, 2)
    state = {
        "subnet.weight": two,  # "bn" within a word
        "pos_embedding": two,
        "layer_norm.weight": two,
        "cls_token": torch.zeros(1, 1, 2),
        "relative_position_bias_table": two,
        "fc.bias": torch.zeros(2),
        "steps": torch.zeros(2, 2, dtype=torch.long),
        "half.weight": two.half(),
    }
    assert prunable_names(state) == ["subnet.weight", "half.weight"]
