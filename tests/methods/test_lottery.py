"""Rounds, cuts and rewinding of lottery tickets."""

import pytest
import torch
from helpers import blobs, network

from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

STEPS = 40  # 5 epochs of 8 steps


def run(options=None, sparsity=0.9375, callback=None, model=None):
    model = model or network()
    lottery = method.make("lottery", options)
    return Trainer(
        model, blobs(), lottery, TrainingSettings(5, 16, sparsity=sparsity), callback=callback
    ).train()


class Log(Callback):
    def __init__(self):
        self.masked, self.weights, self.rates, self.slots = [], [], [], []

    def on_step(self, run):
        self.masked.append(run.masked)
        self.weights.append({n: w.detach().clone() for n, w in run.weights.items()})
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        self.slots.append(len(run.optimizer.state))


def test_densities_fall_by_equal_factors_at_the_ends_of_rounds():
    log = Log()
    run({"rounds": 5}, callback=log)
    # 640 weights, 1/16 of them kept after 4 cuts: each leaves half.
    expected = [0] * 7 + [320] * 8 + [480] * 8 + [560] * 8 + [600] * 9
    assert log.masked == expected


@pytest.mark.parametrize("rewind", [0.0, 0.5])
def test_survivors_of_every_cut_are_where_they_were_early(rewind):
    log, model = Log(), network()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    run({"rounds": 5, "rewind": rewind}, callback=log, model=model)
    early = start if rewind == 0 else log.weights[3]
    for end in (8, 16, 24, 32):
        for name, weight in log.weights[end - 1].items():
            kept = weight != 0
            assert torch.equal(weight[kept], early[name][kept])
        assert log.slots[end - 1] == 0  # no momentum is left


def test_the_largest_trained_weights_survive_a_cut():
    before, after = {}, {}

    class Spy(Callback):
        def before_final_prune(self, run):
            before.update({n: w.detach().abs() for n, w in run.weights.items()})

        def on_step(self, run):
            if run.step == run.final_prune_step:
                after.update({n: m.clone() for n, m in run.masks.items()})

    run({"rounds": 2, "ranking": "magnitude"}, sparsity=0.5, callback=Spy())
    magnitudes = torch.cat([before[n].flatten() for n in before])
    kept = torch.cat([after[n].flatten() for n in before])
    assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_every_round_has_its_own_learning_rate_schedule():
    log = Log()
    run({"rounds": 5, "warmup": 0.0}, callback=log)
    assert log.rates[:8] == log.rates[8:16] == log.rates[32:]
    assert log.rates[0] > log.rates[7]


def test_a_run_with_fewer_steps_than_rounds_is_exact_too():
    model = network()
    lottery = method.make("lottery", {"rounds": 20})
    state = Trainer(model, blobs(), lottery, TrainingSettings(1, 16, sparsity=0.75)).train()
    assert state.masked == 480


def test_without_a_target_nothing_is_rewound():
    log = Log()
    run({"rounds": 5}, sparsity=0.0, callback=log)
    assert set(log.masked) == {0}
    assert not any(torch.equal(a["0.weight"], log.weights[0]["0.weight"]) for a in log.weights[1:])
