"""Two numbers a layer: derived, stored, read back and put into a network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.jobs import ternary_init


def sparse(*shape, kept=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) < kept)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def test_a_hand_made_layer():
    weight = torch.tensor([[1.0, 0.0, 3.0], [-2.0, 0.0, 0.0], [0.0, -4.0, -6.0]])
    initial = ternary_init.derive({"w": weight}, {})
    assert initial.centroids == {"w": (2.0, -4.0)}
    expected = torch.tensor([[2.0, 0.0, 2.0], [-4.0, 0.0, 0.0], [0.0, -4.0, -4.0]])
    assert torch.equal(initial.weight("w"), expected)


def test_layers_of_one_sign_or_of_nothing():
    initial = ternary_init.derive({"a": torch.ones(2, 2), "b": torch.zeros(3, 1)}, {})
    assert initial.centroids == {"a": (1.0, 0.0), "b": (0.0, 0.0)}
    assert torch.equal(initial.weight("b"), torch.zeros(3, 1))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_file_reads_back_the_same(tmp_path, kept):
    weights = {"a": sparse(7, 11, kept=kept), "b": sparse(3, 2, 3, 3, kept=kept, seed=1)}
    initial = ternary_init.derive(weights, {"arch": "x", "widths": [1, 2]})
    ternary_init.save(tmp_path / "i.safetensors", initial)
    back = ternary_init.load(tmp_path / "i.safetensors")
    assert back.centroids == initial.centroids
    assert back.meta == initial.meta
    for name in weights:
        assert torch.equal(back.signs[name], initial.signs[name])
        assert torch.equal(back.weight(name), initial.weight(name))


def test_the_file_of_a_large_layer_is_near_mask_and_signs(tmp_path):
    ternary_init.save(tmp_path / "i", ternary_init.derive({"w": sparse(300, 784)}, {}))
    bits = 300 * 784 * 0.469 + 300 * 784 * 0.1  # entropy of the mask, one bit a survivor
    assert (tmp_path / "i").stat().st_size < 1.2 * bits / 8


def test_a_network_starts_from_it():
    model = net()
    with torch.no_grad():
        model[1].weight.fill_(3)
        model[1].running_mean.fill_(3)
    weights = {"0.weight": sparse(6, 4, kept=0.5), "3.weight": sparse(2, 6, kept=0.5)}
    initial = ternary_init.derive(weights, {})
    initial.apply(model)
    assert torch.equal(model[0].weight, initial.weight("0.weight"))
    assert torch.equal(model[3].weight, initial.weight("3.weight"))
    for bias in (model[0].bias, model[1].bias, model[3].bias, model[1].running_mean):
        assert not bias.any()
    assert torch.equal(model[1].weight, torch.ones(6))


def test_another_network_is_refused():
    initial = ternary_init.derive({"0.weight": torch.ones(5, 4)}, {})
    with pytest.raises(InputError, match=r"no weight 0.weight of shape \(5, 4\)"):
        initial.apply(net())


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 not it", None],
    ids=["empty", "other", "safetensors of other content"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x"
    if content is None:
        save_file({"w": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="is not a ternary initialization"):
        ternary_init.load(path)


def test_a_mask_of_another_size_is_refused(tmp_path):
    initial = ternary_init.derive({"w": sparse(8, 8)}, {})
    ternary_init.save(tmp_path / "x", initial)
    text = (tmp_path / "x").read_bytes()
    (tmp_path / "y").write_bytes(text.replace(b'"w\\":[8,8]', b'"w\\":[9,9]'))
    with pytest.raises(InputError):
        ternary_init.load(tmp_path / "y")
