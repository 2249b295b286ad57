"""Tickets: the mask stays, the start is what was asked for, the control has the same counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError
from lpss_cli.jobs import sparse_training, ternary_init, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.ticket import ticket

ARCH = "mlp:64-24-10"
MASKED = ("fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    request = Request(folder / "s.pt", arch=ARCH, sparsity=0.8, epochs=8, keep_init=True)
    training_job.train(request)
    return request.out


def masks(path):
    state = read(path).state_dict
    return {name: state[name] != 0 for name in MASKED}


def budget(tmp_path, **more):
    return Request(tmp_path / "t.pt", epochs=4, **more)


def test_rewinding_starts_from_the_stored_weights(sparse, tmp_path):
    kept = read(sparse)
    torch.manual_seed(0)
    from lpss_cli.models import build

    first = build(ARCH, (1, 8, 8), 10).state_dict()
    assert all(torch.equal(first[name], kept.init[name]) for name in first)
    untrained = Request(tmp_path / "u.pt", epochs=0)
    outcome = ticket(sparse, untrained, control=False).outcome
    state = read(tmp_path / "u.pt").state_dict
    for name, mask in masks(sparse).items():
        assert torch.equal(state[name], first[name] * mask)
    assert outcome.before == outcome.after


@pytest.mark.parametrize("start", ["rewind", "centroids", "random"])
def test_the_mask_is_the_sparse_networks_own(sparse, tmp_path, start):
    result = ticket(sparse, budget(tmp_path), start)
    after = masks(tmp_path / "t.pt")
    assert all(torch.equal(mask, after[name]) for name, mask in masks(sparse).items())
    assert result.outcome.report.zeros == round(0.8 * (64 * 24 + 240))
    assert result.outcome.after["accuracy"] > 0.6
    assert result.control is not None
    document = json.loads(json.dumps(result.to_dict()))
    assert document["start"] == start
    assert document["control"] == result.control
    assert read(tmp_path / "t.pt").meta["ticket"] == start


def test_two_numbers_a_layer_are_trained_from_the_file(sparse, tmp_path):
    result = ticket(sparse, Request(tmp_path / "u.pt", epochs=0), "centroids", control=False)
    path = Path(result.initial_file or "")
    assert path.name == "u.init.safetensors"
    assert path.stat().st_size == result.initial_bytes
    initial = ternary_init.load(path)
    state = read(tmp_path / "u.pt").state_dict
    for name in MASKED:
        assert torch.equal(state[name], initial.weight(name))
        assert len(state[name].unique()) == 3
    assert not state["fc1.bias"].any()


ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 16)
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10, bias=False)
        self.head.weight = self.words.weight
        nn.init.zeros_(self.second.weight)

    def forward(self, x):
        x = torch.relu(self.first(x.flatten(1)))
        return self.head(x + self.second(x))

def make():
    return Odd()
"""


@pytest.mark.parametrize("start", ["rewind", "centroids"])
def test_tied_weights_and_layers_that_start_at_zero_keep_their_masks(tmp_path, start):
    (tmp_path / "odd.py").write_text(ODD)
    arch = f"{tmp_path / 'odd.py'}:make"
    made = Request(
        tmp_path / "s.pt", arch=arch, method="gmp", sparsity=0.5, epochs=1, keep_init=True
    )
    training_job.train(made)
    again = Request(tmp_path / "t.pt", arch=arch, epochs=1)
    ticket(made.out, again, start, control=start == "rewind")
    source, after = read(made.out).state_dict, read(tmp_path / "t.pt").state_dict
    for name in ("words", "head", "first", "second"):
        key = f"{name}.weight"
        assert 0 < int((source[key] == 0).sum()) < source[key].numel()
        assert torch.equal(source[key] == 0, after[key] == 0), key


def test_random_is_not_rewind(sparse, tmp_path):
    ticket(sparse, Request(tmp_path / "a.pt", epochs=0), "random", control=False)
    first, other = read(sparse).init, read(tmp_path / "a.pt").state_dict
    mask = masks(sparse)["fc1.weight"]
    assert not torch.equal(first["fc1.weight"] * mask, other["fc1.weight"])


def test_what_is_no_ticket_is_refused(sparse, tmp_path):
    training_job.train(Request(tmp_path / "dense.pt", arch=ARCH, epochs=1))
    with pytest.raises(InputError, match="is dense"):
        ticket(tmp_path / "dense.pt", budget(tmp_path))
    ticket(sparse, Request(tmp_path / "bare.pt", epochs=0), "random", control=False)
    with pytest.raises(InputError, match="does not hold the initial weights"):
        ticket(tmp_path / "bare.pt", budget(tmp_path))
    with pytest.raises(InputError, match="--init 'x' is not a choice"):
        ticket(sparse, budget(tmp_path), "x")
    with pytest.raises(InputError, match="already exists"):
        ticket(sparse, Request(sparse))


def test_the_start_of_the_first_training_is_carried_on(tmp_path):
    training_job.train(Request(tmp_path / "d.pt", arch=ARCH, epochs=1, keep_init=True))
    sparse_training.sparsify_checkpoint(
        tmp_path / "d.pt", Request(tmp_path / "s.pt", epochs=1, keep_init=True)
    )
    first, carried = read(tmp_path / "d.pt").init, read(tmp_path / "s.pt").init
    assert first.keys() == carried.keys()
    assert all(torch.equal(first[name], carried[name]) for name in first)
