"""Masks that are chosen before training and never change: static and SNIP."""

import copy

import pytest
import torch
from helpers import blobs, network
from torch import nn

from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


class First(Callback):
    def on_start(self, run):
        self.masks = {k: m.clone() for k, m in run.masks.items()}
        self.weights = {k: w.detach().clone() for k, w in run.weights.items()}
        self.buffers = copy.deepcopy(dict(run.model.named_buffers()))
        self.grads = [p.grad for p in run.model.parameters()]


def start(name, model=None, options=None, **settings):
    first = First()
    settings = TrainingSettings(2, 16, **{"sparsity": 0.8, **settings})
    run = Trainer(
        model or network(), blobs(), method.make(name, options), settings, callback=first
    ).train()
    return first, run


@pytest.mark.parametrize("name", ["static", "snip"])
def test_the_mask_of_the_start_is_the_mask_of_the_end(name):
    first, run = start(name)
    assert run.masked == 512
    assert all(torch.equal(mask, run.masks[k]) for k, mask in first.masks.items())


@pytest.mark.parametrize(("ranking", "kept"), [("erk", [69, 59]), ("uniform", [96, 32])])
def test_static_keeps_each_layers_budget(ranking, kept):
    # 128 kept: as 52 : 44 (sums of dims) is 69.3 : 58.7; as 480 : 160 is 96 : 32.
    first, _ = start("static", options={"ranking": ranking})
    assert [int(m.sum()) for m in first.masks.values()] == kept


def test_what_is_drawn_has_the_same_digits_whatever_the_default_format():
    _, run = start("static")
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = run.random_like(run.weights["0.weight"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float32
    assert len(drawn.unique()) > 400  # of 480; eight bits tell 256 apart


def test_static_draws_another_mask_with_another_seed():
    masks = [torch.cat([m.flatten() for m in start("static", seed=s)[0].masks.values()])
             for s in (0, 0, 1)]  # fmt: skip
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_static_draws_only_from_the_weights_a_checkpoint_has():
    model = network()
    model[0].weight.data[:, :6] = 0
    first, run = start("static", model, keep_zeros=True)
    assert not first.masks["0.weight"][:, :6].any()
    assert run.masked == 512


def test_snip_keeps_the_largest_products_of_weight_and_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))
    reference, data = copy.deepcopy(model), blobs()
    first, run = start("snip", model, options={"snip_batches": 2})
    batches = list(run.batches(0))[:2]
    for x, y in batches:  # literal: gradients of two batches add up
        nn.functional.cross_entropy(reference(x), y).backward()
    products = [reference[i].weight * reference[i].weight.grad for i in (0, 2)]
    scores = torch.cat([p.detach().abs().flatten() for p in products])
    kept = torch.cat([m.flatten() for m in first.masks.values()])
    assert int(kept.sum()) == round(0.2 * 96) == 19
    assert set(scores.topk(19).indices.tolist()) == set(kept.nonzero().squeeze(1).tolist())
    assert len(data.train) == 128


def test_snip_looks_without_moving_anything():
    """The first step starts at the input's weights and BatchNorm statistics."""
    model = network()
    model[1].running_mean.fill_(7)
    before = copy.deepcopy(model)
    first, _ = start("snip", model)
    assert (first.buffers["1.running_mean"] == 7).all()
    assert first.buffers["1.num_batches_tracked"] == 0
    assert first.grads == [None] * 6
    for index in (0, 4):
        name = f"{index}.weight"
        assert torch.equal(first.weights[name], before[index].weight * first.masks[name])


def test_snip_counts_exactly_where_products_underflow_in_half_precision():
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).half()
    model[0].bias.data[:6] = -100  # dead units: 96 of 128 scores are 0
    data = blobs()
    half = type(data.train)(data.train.x.half(), data.train.y)
    object.__setattr__(data, "train", half)
    run = Trainer(model, data, method.make("snip"), TrainingSettings(1, 16, sparsity=0.3)).train()
    assert run.masked == 38


def test_snip_ranks_a_checkpoints_zeros_below_every_other_weight():
    model = network()
    model[0].weight.data[:, :6] = 0
    first, _ = start("snip", model, keep_zeros=True, sparsity=0.4)
    assert not first.masks["0.weight"][:, :6].any()
    assert sum(int(m.sum()) for m in first.masks.values()) == 384
