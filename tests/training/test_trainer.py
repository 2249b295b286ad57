"""The loop: order of events, the cut, BatchNorm, seeds."""

import copy
import itertools
import math

import pytest
import torch
from helpers import blobs, network
from torch import nn

from lpss_cli.errors import InputError, RunError
from lpss_cli.methods.dense import Dense
from lpss_cli.methods.gmp import GMP
from lpss_cli.sparsity.activity import Activity
from lpss_cli.training import method
from lpss_cli.training.batchnorm import recalibrate_batchnorm
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Methods made in a test are not registered for the others."""
    monkeypatch.setattr(method.Method, "registry", dict(method.Method.registry))


def test_one_step_goes_in_the_documented_order():
    events = []

    class Traced(Dense):
        name = "traced"

        def prepare(self, run):
            events.append(("prepare", hasattr(run, "optimizer")))

        def on_gradients(self, run):
            weight = run.weights["0.weight"]
            if run.step == 0:
                run.set_masks({"0.weight": torch.zeros_like(run.masks["0.weight"])})
            else:
                # Dense gradients of masked weights are there, although the weights are zero.
                events.append(("gradient", bool((weight.grad != 0).any())))
                events.append(("masked", bool((weight == 0).all())))
            return True

        def on_weights(self, run):
            events.append(("weights", run.step, bool((run.weights["0.weight"] == 0).all())))

    model = nn.Sequential(nn.Linear(12, 4))
    callback = Callback()
    callback.on_step = lambda run: events.append(("step", run.step))
    Trainer(model, blobs(n=32), Traced(), TrainingSettings(1, 16), callback=callback).train()
    assert events == [
        ("prepare", False), ("weights", 1, True), ("step", 1),
        ("gradient", True), ("masked", True), ("weights", 2, True), ("step", 2),
    ]  # fmt: skip


def test_false_from_on_gradients_skips_the_optimizer_step():
    class Skips(Dense):
        name = "skips"

        def on_gradients(self, run):
            return False

    model = network()
    before = copy.deepcopy(dict(model.named_parameters()))
    Trainer(model, blobs(), Skips(), TrainingSettings(1, 16)).train()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_the_learning_rate_follows_the_factor():
    rates = []
    callback = Callback()
    callback.on_step = lambda run: rates.append(run.optimizer.param_groups[0]["lr"])
    run = Trainer(
        network(), blobs(), method.make("dense", {"lr": 0.2, "warmup": 0.25}),
        TrainingSettings(1, 16), callback=callback,
    ).train()  # fmt: skip
    assert run.total_steps == 8
    # Two steps of warm-up and six of the cosine, taken in the middle of each step.
    rising = [0.05, 0.15]
    falling = [0.1 * (1 + math.cos(math.pi * (i + 0.5) / 6)) for i in range(6)]
    expected = rising + falling
    assert rates == pytest.approx(expected, abs=1e-6)


def test_gmp_follows_the_cubic_path_and_never_revives():
    masks, masked = [], []

    class Watch(Callback):
        def on_step(self, run):
            masked.append(run.masked)
            masks.append({k: m.clone() for k, m in run.masks.items()})

    options = {"begin": 0.25, "end": 0.75, "frequency": 2}
    Trainer(
        network(), blobs(), method.make("gmp", options), TrainingSettings(2, 16, sparsity=0.8),
        callback=Watch(),
    ).train()  # fmt: skip
    # 16 steps; updates at 4 (t=0), 6, 8, 10 and the exact cut at 12; 640 weights.
    cubic = [round(640 * 0.8 * (1 - (1 - t) ** 3)) for t in (0.25, 0.5, 0.75, 1.0)]
    assert [masked[i] for i in (5, 7, 9, 11)] == cubic
    assert masked[:5] == [0] * 5
    assert masked[11:] == [512] * 5
    for before, after in itertools.pairwise(masks):
        assert all((after[k] <= before[k]).all() for k in before)


def test_norm_statistics_are_plain_means_over_the_batches():
    model = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    data = blobs()
    model[1].running_mean.fill_(7)
    momentum = model[1].momentum
    batches = list(data.train.batches(32))
    state = torch.get_rng_state()
    recalibrate_batchnorm(model, iter(batches))
    with torch.no_grad():
        hidden = [model[0](x) for x, _ in batches]
    expected_mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    expected_var = torch.stack([h.var(0) for h in hidden]).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected_mean)
    torch.testing.assert_close(model[1].running_var, expected_var)
    assert model[1].momentum == momentum
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # dropout drew nothing
    model[1].eval()  # frozen, as when a network is tuned finely
    model[1].running_mean.fill_(7)
    recalibrate_batchnorm(model, data.train.batches(32))
    assert (model[1].running_mean == 7).all()
    assert [module.training for module in model] == [True, False, True]
    recalibrate_batchnorm(model.eval(), data.train.batches(32))
    torch.testing.assert_close(model[1].running_mean, expected_mean)
    assert not any(module.training for module in model)


def test_one_shot_cut_keeps_the_largest_and_recalibrates():
    model = network()
    before = model[0].weight.detach().clone()
    run = Trainer(
        model,
        blobs(),
        method.make("gmp", {"ranking": "magnitude"}),
        TrainingSettings(0, 16, sparsity=0.5),
    ).train()
    kept = torch.cat([m.flatten() for m in run.masks.values()])
    magnitude = torch.cat([before.abs().flatten(), run.weights["4.weight"].abs().flatten()])
    assert kept.sum() == 320
    assert magnitude[:480][kept[:480]].min() >= magnitude[:480][~kept[:480]].max()
    assert model[1].num_batches_tracked == 8


def test_a_kept_weight_that_training_left_at_zero_does_not_count_as_pruned():
    class Zeroes(GMP):
        name = "zeroes"

        def on_weights(self, run):
            with torch.no_grad():
                for name, weight in run.weights.items():
                    first = run.masks[name].flatten().nonzero()[0]
                    weight.view(-1)[first] = 0

    model = network()
    Trainer(model, blobs(), Zeroes(), TrainingSettings(2, 16, sparsity=0.5)).train()
    zeros = sum(int((w == 0).sum()) for n, w in model.named_parameters() if w.dim() == 2)
    assert zeros == 320


def test_a_method_that_misses_the_target_is_a_run_error():
    class Greedy(GMP):
        name = "greedy"

        def on_weights(self, run):
            if run.step == run.total_steps:
                run.masks["0.weight"][0] = False
                run.apply_masks()

    with pytest.raises(RunError, match="weights are zero where 320 were asked for"):
        Trainer(network(), blobs(), Greedy(), TrainingSettings(2, 16, sparsity=0.5)).train()


def test_skipped_weights_are_neither_pruned_nor_counted():
    model = network()
    run = Trainer(
        model, blobs(), method.make("gmp"), TrainingSettings(1, 16, sparsity=0.5, skip=("4.*",))
    ).train()
    assert list(run.weights) == ["0.weight"]
    assert int((model[0].weight == 0).sum()) == 240
    assert (model[4].weight != 0).all()
    with pytest.raises(InputError, match="matches no weight"):
        Trainer(
            network(), blobs(), method.make("gmp"), TrainingSettings(1, 16, skip=("conv*",))
        ).train()


def test_a_target_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="leaves none of the 640"):
        Trainer(
            network(), blobs(), method.make("gmp"), TrainingSettings(1, 16, sparsity=0.9999)
        ).train()


def test_tied_weights_are_counted_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            self.b.weight = self.a.weight
            self.out = nn.Linear(12, 4)

        def forward(self, x):
            return self.out(self.b(self.a(x).relu()).relu())

    model = Tied()
    run = Trainer(
        model, blobs(), method.make("lpss"), TrainingSettings(2, 16, sparsity=0.5)
    ).train()
    assert run.total == 144 + 48
    assert model.a.weight is model.b.weight
    assert run.masked == 96


def test_masks_that_hold_the_target_are_not_cut_again():
    """A connection grown at zero (RigL) has no magnitude yet and is kept all the same."""

    class Grows(GMP):
        name = "grows"

        def prepare(self, run):
            run.random_masks(run.sparsity, "erk")

        def sparsity_at(self, run):
            return None

        def on_weights(self, run):
            if run.step == run.final_prune_step:
                mask = run.masks["0.weight"]
                moved = mask.clone().flatten()
                moved[moved.nonzero()[0]] = False
                moved[(~mask.flatten()).nonzero()[0]] = True
                self.grown = int((~mask.flatten()).nonzero()[0])
                run.set_masks({"0.weight": moved.view(mask.shape)})

    made = Grows()
    run = Trainer(network(), blobs(), made, TrainingSettings(2, 16, sparsity=0.5)).train()
    assert run.masked == 320
    assert run.masks["0.weight"].flatten()[made.grown]


def test_gradients_are_clipped_to_the_norm_asked_for():
    norms = []

    class Norm(Dense):
        name = "norm"

        def on_weights(self, run):
            grads = [p.grad.flatten() for p in run.model.parameters()]
            norms.append(float(torch.cat(grads).norm()))

    for clip in (0.0, 0.01):
        config = Norm.Config(clip=clip)
        Trainer(network(), blobs(), Norm(config), TrainingSettings(1, 16)).train()
    assert min(norms[:8]) > 0.01
    assert norms[8:] == pytest.approx([0.01] * 8, rel=1e-3)


def test_gradients_are_looked_at_only_where_a_cut_may_follow(monkeypatch):
    looks = []
    monkeypatch.setattr(Activity, "update", lambda self, weights: looks.append(len(looks)))
    Trainer(network(), blobs(), method.make("dense"), TrainingSettings(4, 16)).train()
    assert looks == []
    # 32 steps: up to the cut after the 22nd, the last 10 of every 20 and the last 10 of all.
    Trainer(network(), blobs(), method.make("gmp"), TrainingSettings(4, 16, sparsity=0.5)).train()
    assert len(looks) == 12


def test_what_cannot_train_is_refused():
    model = network().requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        Trainer(model, blobs(), method.make("dense"), TrainingSettings(1, 16)).train()
    with pytest.raises(InputError, match="no prunable weight"):
        Trainer(model, blobs(), method.make("gmp"), TrainingSettings(1, 16, sparsity=0.5)).train()
    with pytest.raises(InputError, match="batches of one"):
        Trainer(network(), blobs(), method.make("dense"), TrainingSettings(1, 1)).train()


def test_two_methods_cannot_share_a_name():
    with pytest.raises(TypeError, match="two methods called 'gmp'"):
        type("Other", (Dense,), {"name": "gmp"})
    nameless = type("Base", (Dense,), {})
    assert nameless not in method.Method.registry.values()
