"""ASNI-I: sparsity along sigmoids, and what is cut never returns."""

import itertools
import math

import pytest
from helpers import blobs, network

from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


class Watch(Callback):
    def __init__(self):
        self.masked, self.masks = [], []

    def on_step(self, run):
        self.masked.append(run.masked)
        self.masks.append({k: m.clone() for k, m in run.masks.items()})


def follow(options, epochs=5, keep_zeros=False, model=None):
    watch = Watch()
    settings = TrainingSettings(epochs, 16, sparsity=0.8, keep_zeros=keep_zeros)
    made = method.make("asni", options)
    run = Trainer(model or network(), blobs(), made, settings, callback=watch).train()
    return watch, run


def plain(x):
    return 1 / (1 + math.exp(-x))


def test_the_cuts_lie_on_the_rescaled_sigmoid():
    # 40 steps, a cut every 4: after a tenth of training each.
    watch, run = follow({"frequency": 4, "tau": 0.4, "width": 0.1, "end": 0.8})
    low, high = plain(-4), plain(4)
    for step in range(4, 32, 4):
        part = (plain((step / 40 - 0.4) / 0.1) - low) / (high - low)
        assert watch.masked[step - 1] == round(640 * (0.8 * part))
    assert watch.masked[:3] == [0, 0, 0]
    assert set(watch.masked[31:]) == {512} == {run.masked}


def test_a_second_sigmoid_brings_its_part_after_a_rest():
    options = {"frequency": 1, "tau": 0.2, "width": 0.02, "second": 0.25}
    watch, _ = follow({**options, "second_tau": 0.7, "second_width": 0.02})
    assert set(watch.masked[14:20]) == {384}  # the rest stage: three quarters of 512
    assert watch.masked[27] == pytest.approx(384 + 64, abs=1)  # half-way up the second
    assert watch.masked[34] == 512


def test_what_is_cut_stays_zero_and_sparsity_only_rises():
    watch, _ = follow({"frequency": 2})
    assert watch.masked == sorted(watch.masked)
    for before, after in itertools.pairwise(watch.masks):
        assert all((after[k] <= before[k]).all() for k in before)


def test_from_a_sparse_checkpoint_the_path_starts_at_its_sparsity():
    model = network()
    model[0].weight.data[:, :6] = 0
    watch, run = follow({"frequency": 2}, keep_zeros=True, model=model)
    assert 240 <= watch.masked[1] < 260
    assert run.masked == 512


def test_cuts_come_once_an_epoch_or_a_hundred_times_in_a_run_of_few_epochs():
    def due(epochs):
        made = method.make("asni")
        trainer = Trainer(network(), blobs(), made, TrainingSettings(epochs, 16, sparsity=0.8))
        trainer.prepare()
        steps = []
        for step in range(1, trainer.run.total_steps):
            trainer._clock.step = step
            if made.sparsity_at(trainer.run) is not None:
                steps.append(step)
        return steps

    assert due(120) == list(range(8, 816, 8))  # 8 steps an epoch
    assert due(50) == list(range(4, 340, 4))
    assert due(2) == list(range(1, 13))
