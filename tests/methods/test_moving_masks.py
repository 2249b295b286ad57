"""Constant sparsity with moving connections: SET and RigL."""

import itertools
import math

import pytest
import torch
from helpers import blobs, network

from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

both = pytest.mark.parametrize("name", ["set", "rigl"])


class Watch(Callback):
    def __init__(self):
        self.masks, self.weights, self.biases = [], [], []

    def _take(self, run):
        self.masks.append({k: m.clone() for k, m in run.masks.items()})
        self.weights.append({k: w.detach().clone() for k, w in run.weights.items()})
        self.biases.append(run.model[4].bias.detach().clone())

    on_start = on_step = _take


def follow(name, options=None, settings=None, model=None):
    watch = Watch()
    settings = settings or TrainingSettings(5, 16, sparsity=0.8)
    made = method.make(name, {"frequency": 5, **(options or {})})
    run = Trainer(model or network(), blobs(), made, settings, callback=watch).train()
    return watch, run


def moves(watch):
    """Step → connections of each layer that came, where any did."""
    pairs = enumerate(itertools.pairwise(watch.masks))
    came = {step: [int((b[k] & ~a[k]).sum()) for k in a] for step, (a, b) in pairs}
    return {step: counts for step, counts in came.items() if any(counts)}


@both
def test_every_layer_keeps_its_budget_at_every_step(name):
    watch, run = follow(name)
    # 128 kept as 52 : 44 (ERK) is 69.3 : 58.7.
    assert {tuple(int(m.sum()) for m in masks.values()) for masks in watch.masks} == {(69, 59)}
    assert run.masked == 512


def test_updates_come_every_interval_until_three_quarters_of_training():
    watch, _ = follow("rigl", {"drop_fraction": 1.0})
    # 40 steps, the masks fixed at 30. An update after step 5 is part of step 6.
    assert set(moves(watch)) <= {5, 10, 15, 20, 25}
    assert {5, 10, 15} <= set(moves(watch))


@both
def test_the_moved_part_follows_the_cosine(name):
    dropped = {}

    class Count(Callback):
        def on_start(self, run):
            from lpss_cli.sparsity import drop_grow

            original = drop_grow.drop_and_grow

            def counted(weight, mask, count, growth):
                dropped.setdefault(run.step, []).append(count)
                return original(weight, mask, count, growth)

            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(drop_grow, "drop_and_grow", counted)

    callback = Count()
    try:
        Trainer(
            network(), blobs(), method.make(name, {"frequency": 5}),
            TrainingSettings(5, 16, sparsity=0.8), callback=callback,
        ).train()  # fmt: skip
    finally:
        callback.patch.undo()
    for step in (5, 10, 15, 20, 25):
        fraction = 0.15 * (1 + math.cos(math.pi * step / 30))
        assert dropped[step] == [int(fraction * 69), int(fraction * 59)]
    assert len(dropped) == 5


@both
def test_dropped_are_the_smallest_and_grown_start_at_zero_without_momentum(name):
    watch, _ = follow(name, {"lr": 0.05})
    before, after = watch.masks[5], watch.masks[6]
    weights, later = watch.weights[5], watch.weights[6]
    for key, mask in before.items():
        dropped, grown = mask & ~after[key], after[key] & ~mask
        assert int(dropped.sum()) == int(grown.sum()) > 0
        stayed = mask & after[key]
        count = int(0.15 * (1 + math.cos(math.pi / 6)) * int(mask.sum()))
        limit = weights[key][mask].abs().sort().values[count - 1]
        assert (weights[key][dropped].abs() <= limit).all()
        assert (weights[key][stayed].abs() > limit).sum() == int(mask.sum()) - count
        if name == "rigl":
            assert (later[key][grown] == 0).all()
            # Their first step has no momentum to follow.
            assert (watch.weights[7][key][grown] != 0).any()


def test_rigls_update_replaces_the_step_and_sets_does_not():
    for name, still in (("rigl", True), ("set", False)):
        watch, _ = follow(name)
        assert torch.equal(watch.biases[5], watch.biases[6]) is still
        assert not torch.equal(watch.biases[6], watch.biases[7])
        key = "0.weight"
        stayed = watch.masks[5][key] & watch.masks[6][key]
        same = watch.weights[5][key][stayed] == watch.weights[6][key][stayed]
        assert bool(same.all()) is still


def test_rigl_grows_where_the_gradient_is_largest():
    from lpss_cli.methods.rigl import RigL

    seen = {}

    class Spy(Callback):
        def on_start(self, run):
            self.run = run

    spy, made = Spy(), method.make("rigl", {"frequency": 5})
    original = RigL.growth

    def growth(run, weight):
        scores = original(made, run, weight)
        name = next(k for k, w in run.weights.items() if w is weight)
        if run.step == 5:
            seen[name] = (run.masks[name].clone(), weight.grad.clone())
        return scores

    made.growth = growth
    watch = Watch()
    spy.on_step = watch._take
    Trainer(network(), blobs(), made, TrainingSettings(5, 16, sparsity=0.8), callback=spy).train()
    for key, (mask, gradient) in seen.items():
        after = watch.masks[5][key]  # step 6
        grown = after & ~mask
        left_out = ~after & ~mask
        assert gradient[grown].abs().min() >= gradient[left_out].abs().max()


@both
def test_a_checkpoint_starts_with_its_largest_weights(name):
    model = network()
    before = model[0].weight.detach().clone()
    watch, _ = follow(
        name, settings=TrainingSettings(5, 16, sparsity=0.8, keep_zeros=True), model=model
    )
    mask = watch.masks[0]["0.weight"]
    assert int(mask.sum()) == 69
    assert before[mask].abs().min() >= before[~mask].abs().max()
    scratch, _ = follow(name)
    chosen = scratch.masks[0]["0.weight"]
    assert before[chosen].abs().min() < before[~chosen].abs().max()


@both
def test_the_interval_shrinks_in_a_short_run_and_may_be_given(name):
    def first_update(epochs, options):
        made = method.make(name, options)
        steps = []
        original = type(made).update
        made.update = lambda run: original(made, run) and (steps.append(run.step) or True)
        Trainer(network(), blobs(), made, TrainingSettings(epochs, 16, sparsity=0.8)).train()
        return steps

    assert first_update(20, {}) == list(range(6, 120, 6))  # 120 steps with updates / 20
    assert first_update(20, {"frequency": 50}) == [50, 100]


def test_without_a_target_nothing_moves():
    watch, run = follow("rigl", settings=TrainingSettings(2, 16))
    assert moves(watch) == {}
    assert run.masked == 0
