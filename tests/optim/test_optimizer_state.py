"""Momenta follow their parameters by name."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from lpss_cli.errors import InputError
from lpss_cli.optim import state_dict
from lpss_cli.optim.lpsgd import LpSGD


def network(order):
    """Three parameters of one shape; only their order differs."""
    model = nn.Module()
    for name in order:
        model.register_parameter(name, nn.Parameter(torch.full((2, 3), float(ord(name)))))
    return model


def stepped(model, make):
    optimizer = make(model.parameters())
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, ord(name[-1]) / 100)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "make",
    [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: LpSGD(p, p=1.2), lambda p: Adam(p, lr=0.1)],
    ids=["sgd", "lpsgd", "adam"],
)
def test_state_goes_to_the_parameter_of_the_same_name(make):
    model, other = network("abc"), network("cab")
    saved = state_dict.by_name(stepped(model, make), model)
    assert set(saved["state"]) == set("abc")
    restored = make(other.parameters())
    state_dict.restore(restored, other, saved)
    there = {n: restored.state[p] for n, p in other.named_parameters()}
    for name, kept in saved["state"].items():
        assert set(kept) == set(there[name])
        for key, value in kept.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(there[name][key]))


def test_a_tied_parameter_has_its_first_name_and_its_state_once():
    model = network("ab")
    model.register_parameter("tied", model.a)
    optimizer = stepped(model, lambda p: SGD(p, lr=0.1, momentum=0.9))
    saved = state_dict.by_name(optimizer, model)
    assert list(saved["state"]) == ["a", "b"]
    state_dict.restore(optimizer, model, saved)
    assert torch.equal(optimizer.state[model.tied]["momentum_buffer"], torch.full((2, 3), 0.97))


def test_parameters_of_another_network_are_known_by_their_place():
    model, head = network("ab"), network("xy")
    both = nn.ModuleList([head, model])
    saved = state_dict.by_name(stepped(both, lambda p: SGD(p, lr=0.1, momentum=0.9)), model)
    assert set(saved["state"]) == {"a", "b", "#0", "#1"}
    restored = SGD(both.parameters(), lr=0.1, momentum=0.9)
    state_dict.restore(restored, model, saved)
    for name, place in (("a", model.a), ("#1", head.y)):
        wanted = saved["state"][name]["momentum_buffer"]
        assert torch.equal(restored.state[place]["momentum_buffer"], wanted)


def test_options_of_groups_come_back_and_other_groups_are_refused():
    model = network("abc")
    groups = [{"params": [model.a], "lr": 0.5}, {"params": [model.b, model.c], "lr": 0.25}]
    saved = state_dict.by_name(SGD(groups, lr=0.1), model)
    other = SGD([{"params": [model.a]}, {"params": [model.c, model.b]}], lr=0.1)
    state_dict.restore(other, model, saved)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.25]
    with pytest.raises(InputError, match="in another way around a"):
        state_dict.restore(SGD(model.parameters(), lr=0.1), model, saved)
