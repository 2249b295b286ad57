"""Dead units are removed, and the outputs stay the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpss_cli.export.compaction.compact import compact
from lpss_cli.models import KNOWN, build
from lpss_cli.reporting.flops import layer_sizes
from lpss_cli.sparsity.prunable import prunable_weights
from lpss_cli.utils.torch_utils import forward_flops


def shapes(compacted):
    return {layer.name: layer.shape for layer in compacted.savings.after}


def difference(model, compacted, x):
    """Return the largest difference of the outputs in float64, relative to the largest output."""
    model, x = copy.deepcopy(model).double().eval(), x.double()
    with torch.no_grad():
        expected, got = model(x), copy.deepcopy(compacted.model).double()(x)
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def linear(weight, bias=None):
    """Return a linear layer with these weights and biases."""
    weight = torch.tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float32)
    return layer


def test_a_dead_unit_with_a_bias_moves_into_the_next_bias():
    # Unit 1 is relu(3) = 3 always; 3·5 and 3·7 go to the outputs' biases.
    model = nn.Sequential(
        linear([[1, 2], [0, 0], [3, -4]], [0.5, 3, -1]),
        nn.ReLU(),
        linear([[1, 5, 2], [4, 7, 6]], [0, 1]),
    )
    found = compact(model, torch.randn(3, 2))
    assert found.model.get_submodule("0").weight.tolist() == [[1, 2], [3, -4]]
    assert found.model.get_submodule("0").bias.tolist() == [0.5, -1]
    assert found.model.get_submodule("2").weight.tolist() == [[1, 2], [4, 6]]
    assert found.model.get_submodule("2").bias.tolist() == [15, 22]
    assert found.savings.parameters == (9 + 8, 6 + 6)
    assert found.savings.multiply_adds == (6 + 6, 4 + 4)
    assert model[0].weight.shape == (3, 2)  # the given network is not changed


def test_an_unread_unit_is_removed_with_everything_that_only_it_reads():
    # Output 0 reads only unit 0, which reads only unit 1, which reads feature 0.
    model = nn.Sequential(
        linear([[5, 1], [1, 0], [2, 2]], [1, 1, 1]),
        nn.Tanh(),
        linear([[0, 1, 0], [1, 0, 1]], [0, 0]),
        nn.Tanh(),
        linear([[2, 0]]),
    )
    found = compact(model, torch.randn(3, 2))
    assert shapes(found) == {"0": (1, 2), "2": (1, 1), "4": (1, 1)}
    assert difference(model, found, torch.randn(9, 2)) < 1e-12


def test_a_layer_without_a_bias_gets_one_for_a_constant():
    model = nn.Sequential(linear([[1, 1], [0, 0]], [0, 2]), nn.Sigmoid(), linear([[1, 1]])).double()
    found = compact(model, torch.randn(3, 2).double())
    assert found.model.get_submodule("2").bias.item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert shapes(found) == {"0": (1, 2), "2": (1, 1)}


def conv_pair(padding, bias):
    """Return two convolutions; channel 1 between them is dead and has this bias."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=padding))
    model[0].weight.data[1] = 0
    model[0].bias.data[1] = bias
    return model


@pytest.mark.parametrize(("padding", "bias", "left"), [(0, 2, 2), (1, 0, 2), (1, -1, 2), (1, 2, 3)])
def test_a_constant_under_zero_padding_is_kept(padding, bias, left):
    model = conv_pair(padding, bias)
    found = compact(model, torch.randn(2, 2, 8, 8))
    assert shapes(found) == {"0": (left, 2, 3, 3), "2": (4, left, 3, 3)}
    assert difference(model, found, torch.randn(5, 2, 8, 8)) < 1e-6


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_constant_is_constant_under_other_paddings(mode):
    model = conv_pair(1, 2)
    model[2].padding_mode = mode
    found = compact(model, torch.randn(2, 2, 8, 8))
    assert shapes(found)["0"] == (2, 2, 3, 3)


def test_constants_under_zero_padding_are_merged_into_one():
    model = conv_pair(1, 2.0)
    model[0].weight.data[2] = 0
    model[0].bias.data[2] = 3.0
    found = compact(model, torch.randn(2, 2, 8, 8))
    assert shapes(found) == {"0": (2, 2, 3, 3), "2": (4, 2, 3, 3)}
    assert difference(model, found, torch.randn(5, 2, 8, 8)) < 1e-6


POOLS = {
    "max": (nn.MaxPool2d(2), 2),
    "max, padded with -inf": (nn.MaxPool2d(3, padding=1), 2),
    "average": (nn.AvgPool2d(2), 2),
    "average, borders of zeros": (nn.AvgPool2d(3, padding=1), 3),
    "average, borders not counted": (nn.AvgPool2d(3, padding=1, count_include_pad=False), 2),
    "adaptive": (nn.AdaptiveAvgPool2d(3), 2),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_constant_through_pooling_and_flatten(name):
    pool, left = POOLS[name]
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), pool, nn.Flatten(), nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)
    )
    x = torch.randn(4, 1, 8, 8)
    model(x)
    model[0].weight.data[1] = 0
    found = compact(model, x)
    assert shapes(found)["0"] == (left, 1, 3, 3)
    assert shapes(found)["3"] == (4, model[3].in_features * left // 3)
    assert difference(model, found, x) < 1e-6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.conv1(x)))
        return self.fc(F.relu(x).mean((2, 3)))


def test_residual_channels_are_removed_together_or_not_at_all():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(5, 1, 6, 6)
    model.conv2.weight.data[0] = 0  # its channel is still live in the stem
    model.conv1.weight.data[2] = 0  # inside the block, so it can be removed
    model.conv1.bias.data[2] = -1
    found = compact(model, x)
    assert shapes(found) == {
        "stem": (4, 1, 3, 3), "conv1": (3, 4, 3, 3), "conv2": (4, 3, 3, 3), "fc": (2, 4),
    }  # fmt: skip
    model.fc.weight.data[:, 3] = 0
    assert shapes(compact(model, x))["stem"] == (4, 1, 3, 3)  # conv1 reads channel 3
    model.conv1.weight.data[:, 3] = 0
    found = compact(model, x)
    assert shapes(found) == {
        "stem": (3, 1, 3, 3), "conv1": (3, 3, 3, 3), "conv2": (3, 3, 3, 3), "fc": (2, 3),
    }  # fmt: skip
    assert difference(model, found, x) < 1e-6


class Odd(nn.Module):
    """Unknown operations, a hard-coded view, a tied layer and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.mix = nn.Conv2d(12, 4, 1)
        self.fc = nn.Linear(64, 64)
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = self.mix(torch.cat([x[:, :, 1:-1, 1:-1] * 1.0, self.depth(x)], 1))
        x = x.view(-1, 64)
        return self.last(self.fc(self.fc(x).relu()).cumsum(1))


def test_channels_through_unknown_operations_are_kept_and_the_reason_says_so():
    torch.manual_seed(0)
    model, x = Odd(), torch.randn(3, 1, 8, 8)
    for weight in prunable_weights(model).values():
        weight.tensor.data[torch.rand(len(weight.tensor)) < 0.5] = 0
    found = compact(model, x)
    assert "cumsum" in found.savings.reason
    assert "getitem" in found.savings.reason
    assert shapes(found)["fc"] == (64, 64)
    assert difference(model, found, x) < 1e-6


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.norm = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = torch.cat([F.avg_pool2d(x, 3, 1), self.depth(x)], 1)
        return self.mix(F.relu(self.norm(y))).reshape(x.shape[0], -1)


def test_depthwise_layers_concatenation_and_a_norm_that_cannot_be_folded():
    torch.manual_seed(0)
    model, x = Depthwise(), torch.randn(3, 1, 8, 8)
    model(x)
    model.conv.weight.data[1] = 0  # constant on both paths
    model.depth.weight.data[2] = 0  # constant on one path
    model.mix.weight.data[:, [4, 10]] = 0  # read on neither path
    found = compact(model, x)
    assert shapes(found) == {
        "conv": (4, 1, 3, 3), "depth": (4, 1, 3, 3), "mix": (4, 8, 1, 1),
    }  # fmt: skip
    assert found.model.norm.num_features == 8
    assert difference(model, found, x) < 1e-6


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


def test_a_wide_layer_reads_only_the_features_it_needs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(400, 200))
    reads = torch.rand(4, 100) < 0.3  # some positions of every channel
    model[2].weight.data[:, ~reads.flatten()] = 0
    x = torch.randn(3, 1, 10, 10)
    found = compact(model, x)
    assert shapes(found) == {"0": (4, 1, 3, 3), "2": (200, int(reads.sum()))}
    assert difference(model, found, x) < 1e-6
    model[2].weight.data[:150] = 0  # selecting features would not pay for the rest
    smaller = nn.Sequential(model[0], model[1], nn.Linear(400, 50))
    smaller[2].weight.data = model[2].weight.data[150:]
    assert shapes(compact(smaller, x))["2"] == (50, 400)


def test_a_network_that_cannot_be_traced_is_returned_with_the_reason():
    model, x = Branching(), torch.randn(2, 3)
    found = compact(model, x)
    assert "cannot be traced" in found.savings.reason
    assert not found.savings.changed
    assert found.model(x).equal(model(x))


def test_computed_weights_stay_as_they_are():
    from torch.nn.utils import parametrizations, prune

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():  # a weight with a history cannot be copied
        prune.l1_unstructured(model[0], "weight", 0.5)
    parametrizations.weight_norm(model[2])
    x = torch.randn(2, 3)
    found = compact(model, x)
    assert not found.savings.changed
    assert difference(model, found, x) < 1e-6


def test_a_network_of_dead_units_still_runs():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data.zero_()
    model[0].bias.data.copy_(torch.tensor([1.0, 2.0, -1.0, 0.0]))
    found = compact(model, torch.randn(2, 3))
    assert shapes(found) == {"0": (1, 3), "2": (2, 1)}
    assert difference(model, found, torch.randn(5, 3)) < 1e-6


def test_transformer_blocks_shrink_inside():
    model = nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.Flatten()
    )
    model[1].weight.data[:3] = 0
    x = torch.randn(2, 5, 6)
    found = compact(model, x)
    assert shapes(found) == {"1": (5, 6), "3": (6, 5)}
    assert "LayerNorm" in found.savings.reason
    assert difference(model, found, x) < 1e-6


def sparse(model: nn.Module, seed: int) -> nn.Module:
    """Prune heavily at random, with whole rows and columns, and give norms random statistics."""
    g = torch.Generator().manual_seed(seed)
    for weight in prunable_weights(model).values():
        tensor = weight.tensor.data
        tensor[torch.rand(tensor.shape, generator=g) > 0.05] = 0
        tensor[torch.rand(len(tensor), generator=g) < 0.4] = 0
        tensor[:, torch.rand(tensor.shape[1], generator=g) < 0.2] = 0
        tensor *= 4  # so that signals do not vanish with depth
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            n = module.num_features
            module.running_mean.copy_(torch.randn(n, generator=g))
            module.running_var.copy_(0.5 + torch.rand(n, generator=g))
            module.weight.data.copy_(torch.randn(n, generator=g))
            module.bias.data.copy_(torch.randn(n, generator=g))
            module.weight.data[torch.rand(n, generator=g) < 0.1] = 0
        elif getattr(module, "bias", None) is not None:
            module.bias.data.copy_(torch.randn(module.bias.shape, generator=g))
    return model.eval()


SHAPES = {"mlp": (12,), "lenet300": (1, 8, 8), "lenet5": (1, 28, 28)}
NETWORKS = [name for name in KNOWN if name != "mlp"] + ["mlp:12-40-30-10", "torchvision:resnet18"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_zoo_keeps_its_outputs(name):
    shape = SHAPES.get(name.partition(":")[0], (3, 16, 16))
    if name == "torchvision:resnet18":
        shape = (3, 32, 32)
    torch.manual_seed(0)
    model = sparse(build(name, shape, 10), 1).double()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2)).double()
    found = compact(model, x)
    assert found.savings.reason == ""
    assert found.savings.changed
    assert found.savings.parameters[1] < 0.8 * found.savings.parameters[0]
    assert difference(model, found, x) < 1e-12


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_any_sparse_residual_network_keeps_its_outputs(seed):
    torch.manual_seed(seed)
    model = sparse(build("resnet20", (1, 8, 8), 10), seed).double()
    x = torch.randn(2, 1, 8, 8).double()
    found = compact(model, x)
    assert found.savings.reason == ""
    assert difference(model, found, x) < 1e-12


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_multiply_adds_are_half_of_the_counted_operations(name):
    model, x = build(name, (1, 28, 28), 10), torch.randn(2, 1, 28, 28)
    sizes = layer_sizes(model, x)
    assert 2 * sum(layer.multiply_adds for layer in sizes) == forward_flops(model, x)
    assert sum(layer.parameters for layer in sizes) <= sum(p.numel() for p in model.parameters())


def test_the_cost_of_layers_in_closed_form():
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 2, stride=2)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.up(x))

    up, fc = layer_sizes(Up(), torch.randn(3, 2, 2, 2))
    assert (up.shape, up.parameters, up.multiply_adds) == ((2, 3, 2, 2), 24 + 3, 24 * 4)
    assert (fc.shape, fc.parameters, fc.multiply_adds) == ((5, 4), 25, 20 * 3 * 4)
