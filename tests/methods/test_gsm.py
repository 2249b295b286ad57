"""GSM: which gradients pass, how the rest fades, and a cut that takes nothing away."""

import json

import pytest
import torch
from helpers import blobs, network
from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.jobs import sparse_training, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.methods.gsm import DECAY, GSM, remaining_fraction
from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


def run(model, options=None, settings=None, callback=None, data=None):
    made = method.make("gsm", options)
    settings = settings or TrainingSettings(4, 16, sparsity=0.8)
    return Trainer(model, data or blobs(), made, settings, callback=callback).train()


def test_only_the_q_largest_products_keep_their_gradient():
    seen = []

    class Spy(GSM):
        def on_gradients(self, run):
            dense = {k: w.grad.clone() for k, w in run.weights.items()}
            biases = run.model[0].bias.grad.clone()
            wanted = super().on_gradients(run)
            products = [(w.detach() * dense[k]).flatten() for k, w in run.weights.items()]
            passed = [w.grad.flatten() != 0 for w in run.weights.values()]
            seen.append((torch.cat(products).abs(), torch.cat(passed)))
            assert all(
                torch.equal(w.grad[w.grad != 0], dense[k][w.grad != 0])
                for k, w in run.weights.items()
            )
            assert torch.equal(run.model[0].bias.grad, biases)
            return wanted

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    Trainer(
        model, blobs(), Spy(GSM.Config(settle=1.0)), TrainingSettings(1, 16, sparsity=0.9)
    ).train()
    assert len(seen) == 8
    for products, passed in seen:
        assert int(passed.sum()) == 16  # of 160
        assert set(products.topk(16).indices.tolist()) == set(passed.nonzero().flatten().tolist())


def test_products_that_underflow_in_half_precision_are_told_apart():
    passed = []

    class Spy(GSM):
        def on_gradients(self, run):
            weight = run.weights["0.weight"]
            weight.detach().copy_(torch.linspace(1e-4, 1e-3, 48).view(4, 12))
            weight.grad.fill_(1e-5)
            passed.append(super().on_gradients(run) and weight.grad.flatten() != 0)
            return False

    data = blobs()
    half = type(data.train)(data.train.x.half(), data.train.y)
    object.__setattr__(data, "train", half)
    model = nn.Sequential(nn.Linear(12, 4)).half()
    Trainer(
        model, data, Spy(GSM.Config(settle=1.0)), TrainingSettings(1, 16, sparsity=0.75)
    ).train()
    assert passed[0].nonzero().flatten().tolist() == list(range(36, 48))


def test_once_settled_the_largest_weights_alone_see_gradients():
    passed, largest = [], []

    class Spy(GSM):
        def on_gradients(self, run):
            weights = torch.cat([w.detach().abs().flatten() for w in run.weights.values()])
            wanted = super().on_gradients(run)
            passed.append(torch.cat([w.grad.flatten() != 0 for w in run.weights.values()]))
            largest.append(set(weights.topk(16).indices.tolist()))
            return wanted

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    state = Trainer(
        model, blobs(), Spy(GSM.Config(settle=0.5)), TrainingSettings(4, 16, sparsity=0.9)
    ).train()
    chosen = [set(mask.nonzero().flatten().tolist()) for mask in passed]
    assert chosen[16] == largest[16]
    assert all(later == chosen[16] for later in chosen[17:])
    assert any(earlier != chosen[16] for earlier in chosen[:16])
    # What fades meanwhile is what the cut takes.
    kept = torch.cat([mask.flatten() for mask in state.masks.values()])
    assert set(kept.nonzero().flatten().tolist()) == chosen[16]


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
def test_the_sampled_threshold_meets_the_density_within_its_error(density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4000), nn.ReLU(), nn.Linear(4000, 20))
    torch.nn.init.normal_(model[2].weight, std=0.1)
    passed = []

    class Spy(GSM):
        def on_gradients(self, run):
            scores = [torch.rand(w.shape) ** 3 for w in run.weights.values()]
            threshold = self._threshold(run, scores)
            passed.append(sum(int((s >= threshold).sum()) for s in scores) / run.total)
            return True

    Trainer(
        model, blobs(), Spy(GSM.Config(settle=1.0)), TrainingSettings(2, 16, sparsity=1 - density)
    ).train()
    deviation = (density * (1 - density) / 20_000) ** 0.5
    assert max(abs(p - density) for p in passed) < 4 * deviation
    assert len(set(passed)) > 8  # another sample every step
    assert abs(sum(passed) / 16 - density) < 1.5 * deviation


def test_two_steps_by_hand():
    """Z = βZ + ηw + B∘g, w = w - αZ on pruned weights, without decay on biases."""
    model = nn.Sequential(nn.Linear(12, 4))
    weight = model[0].weight.detach().clone().double()
    bias = model[0].bias.detach().clone().double()
    grads = []

    class Spy(GSM):
        def on_gradients(self, run):
            wanted = super().on_gradients(run)
            grads.append([p.grad.clone().double() for p in run.model.parameters()])
            return wanted

    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, "clip": 0.0, "warmup": 0.0}
    final = []
    callback = Callback()
    callback.before_final_prune = lambda run: final.append(
        [p.detach().clone() for p in model.parameters()]
    )
    Trainer(
        model, blobs(n=32), Spy(GSM.Config(**options, peak=1.0)),
        TrainingSettings(1, 16, sparsity=0.5), callback=callback,
    ).train()  # fmt: skip
    z, z_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for g, g_bias in grads:
        assert int((g != 0).sum()) == 24
        z = 0.5 * z + 0.2 * weight + g
        z_bias = 0.5 * z_bias + g_bias
        weight, bias = weight - 0.1 * z, bias - 0.1 * z_bias
    torch.testing.assert_close(final[0][0].double(), weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(final[0][1].double(), bias, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_weight_without_gradient_fades_as_the_solver_says(nesterov):
    data = blobs()
    x, y = next(iter(data.train.batches(128)))
    x = x.clone()
    x[:, 5] = 0  # its weights never see a gradient
    object.__setattr__(data, "train", type(data.train)(x, y))
    model, left = network(), []
    start = model[0].weight[:, 5].detach().clone()
    callback = Callback()
    callback.before_final_prune = lambda run: left.append(run.weights["0.weight"][:, 5] / start)
    state = run(
        model, {"nesterov": nesterov}, TrainingSettings(20, 16, sparsity=0.8), callback, data
    )
    memory = state.method_state
    rates = GSM()._lr_factors(state, memory["peak"])
    expected = remaining_fraction(
        rates, memory["lr"], memory["momentum"], memory["weight_decay"], nesterov
    )
    assert 1e-5 < expected <= 3e-5
    torch.testing.assert_close(left[0], torch.full((40,), expected), rtol=1e-2, atol=0)
    assert "fades to 3e-05" in state.notes[0]
    assert f"momentum {memory['momentum']:.4g}" in state.notes[0]


def test_the_cut_ends_the_run_and_norms_are_estimated_after_it():
    events = []
    callback = Callback()
    callback.before_final_prune = lambda run: events.append(("cut", run.step, run.masked))
    model = network()
    state = run(model, callback=callback)
    assert events == [("cut", 32, 0)]
    assert state.masked == 512
    assert model[1].num_batches_tracked == 8  # counted anew


def test_a_cut_before_the_end_leaves_ordinary_steps_for_what_is_kept():
    seen = []

    class Spy(GSM):
        def on_gradients(self, run):
            wanted = super().on_gradients(run)
            seen.append(sum(int((w.grad != 0).sum()) for w in run.weights.values()))
            return wanted

    Trainer(
        network(), blobs(), Spy(GSM.Config(end=0.5)), TrainingSettings(4, 16, sparsity=0.8)
    ).train()
    assert set(seen[:16]) == {128}
    assert min(seen[16:]) > 400  # dense gradients; the engine masks them


def test_given_settings_are_used():
    state = run(network(), {"momentum": 0.9, "weight_decay": 1e-3, "lr": 0.02, "peak": 0.5})
    chosen = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3, "peak": 0.5}
    assert {key: state.method_state[key] for key in chosen} == chosen
    group = state.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-3)
    assert state.optimizer.param_groups[-1]["weight_decay"] == 0  # biases
    with pytest.raises(InputError, match="--ranking 'erk' is not a choice"):
        method.make("gsm", {"ranking": "erk"})
    with pytest.raises(InputError, match="--begin is not an option of the method 'gsm'"):
        method.make("gsm", {"begin": 0.1})
    method.make("gsm", {"end": 0.05})  # the default of an option that it does not have is no limit


def test_the_solved_decay_is_for_pruned_weights_alone():
    state = run(network(), settings=TrainingSettings(4, 16, sparsity=0.8, skip=("4.*",)))
    decays = [group["weight_decay"] for group in state.optimizer.param_groups]
    assert decays[0] > 0.01
    assert decays[1:] == [DECAY, 0]


def test_with_nothing_to_fade_training_is_ordinary():
    state = run(network(), settings=TrainingSettings(4, 16))
    assert state.method_state["weight_decay"] == DECAY
    assert state.notes == []


def test_the_learning_rate_has_a_peak_and_three_drops():
    rates = []
    callback = Callback()
    callback.on_step = lambda run: rates.append(run.optimizer.param_groups[0]["lr"])
    run(network(), {"lr": 1.0, "warmup": 0.0, "peak": 4 / 7}, TrainingSettings(7, 16, sparsity=0.5),
        callback)  # fmt: skip
    # 8 steps an epoch: the official 160, 200 and 240 of 280 epochs.
    assert rates == pytest.approx([1.0] * 32 + [0.1] * 8 + [0.01] * 8 + [0.001] * 8)


def test_the_metrics_before_the_cut_are_reported(tmp_path):
    request = Request(
        out=tmp_path / "gsm.pt", method="gsm", sparsity=0.8, epochs=20, batch_size=32, threads=1
    )
    notes = []
    callback = sparse_training.JobCallback()
    callback.on_note = notes.append
    outcome = training_job.train(request, callback)
    assert outcome.before_cut is not None
    assert outcome.after["accuracy"] == pytest.approx(outcome.before_cut["accuracy"], abs=0.005)
    assert json.loads(json.dumps(outcome.to_dict()))["before_cut"] == outcome.before_cut
    meta = torch.load(request.out, weights_only=True)["lpss"]
    assert meta["metrics"]["before_cut"] == outcome.before_cut
    assert meta["notes"] == [note for note in notes if note.startswith("gsm:")] != []


def test_a_cut_with_training_left_is_not_measured(tmp_path):
    request = Request(
        out=tmp_path / "x.pt", method="gmp", sparsity=0.8, epochs=1, batch_size=64, threads=1
    )
    assert training_job.train(request).before_cut is None
