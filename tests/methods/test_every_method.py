"""What every registered method promises; registering a method tests it."""

import copy

import pytest
import torch
from helpers import blobs, network

from lpss_cli.errors import RunError
from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

METHODS = sorted(method.registry())
pytestmark = pytest.mark.parametrize("name", METHODS)
SETTINGS = TrainingSettings(epochs=3, batch_size=16, seed=1, sparsity=0.9)
OPTIONS = {"frequency": 2}


def train(name, model, settings=SETTINGS, data=None, resume=None, **more):
    options = {} if "frequency" in method.get(name).ignores else OPTIONS
    made = method.make(name, options)
    return Trainer(model, data or blobs(), made, settings, **more).train(resume)


def zeros(model):
    return sum(int((w == 0).sum()) for n, w in model.named_parameters() if w.dim() == 2)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99])
def test_zeros_are_exactly_as_many_as_asked(name, sparsity, ties):
    model = network(ties)
    run = train(name, model, TrainingSettings(3, 16, sparsity=sparsity))
    assert zeros(model) == round(sparsity * 640) == run.masked


@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize(
    ("layers", "sparsity", "first", "last"),
    # 480 + 160 weights; 320 zeros in all, or what the two targets add up to.
    [
        (("0=0.625",), 0.5, 300, 20),
        (("4=95%",), 0.9, 424, 152),
        (("*=2x", "0=0.8"), 0.725, 384, 80),
    ],
)
def test_layers_with_a_target_of_their_own_are_exact(
    name, layers, sparsity, first, last, keep_zeros
):
    model = network(ties=True)
    if keep_zeros:
        with torch.no_grad():
            model[0].weight[:, :3] = 0
    settings = TrainingSettings(3, 16, sparsity=sparsity, layers=layers, keep_zeros=keep_zeros)
    run = train(name, model, settings)
    assert [int((model[i].weight == 0).sum()) for i in (0, 4)] == [first, last]
    assert run.masked == first + last == round(sparsity * 640)


def test_one_shot_is_exact_too(name):
    model = network(ties=True)
    run = train(name, model, TrainingSettings(0, 16, sparsity=0.75))
    assert zeros(model) == run.masked == 480
    model[4].weight.data.zero_()  # more zeros than are asked for, but none of a checkpoint
    run = train(name, model, TrainingSettings(0, 16, sparsity=0.1))
    assert zeros(model) == run.masked == 64


def test_zeros_of_the_input_are_kept(name):
    model = network()
    with torch.no_grad():
        model[0].weight[:, :6] = 0
    train(name, model, TrainingSettings(3, 16, sparsity=0.8, keep_zeros=True))
    assert zeros(model) == round(0.8 * 640)
    # 240 of 640 are zero already: a lower target keeps them and says so.
    model = network()
    with torch.no_grad():
        model[0].weight[:, :6] = 0
    warnings = []
    callback = Callback()
    callback.on_warning = warnings.append
    train(name, model, TrainingSettings(3, 16, sparsity=0.1, keep_zeros=True), callback=callback)
    assert zeros(model) == 240
    assert "already has 240 zeros" in warnings[0]


def test_same_seed_same_bits_other_seed_others(name):
    states = []
    for seed in (1, 1, 2):
        model = network()
        train(name, model, TrainingSettings(3, 16, seed=seed, sparsity=0.9))
        states.append(torch.cat([t.flatten().double() for t in model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_resumed_run_keeps_the_zeros_of_its_input(name):
    """More zeros came in than were asked for: the resumed run must know without the input."""
    settings = TrainingSettings(3, 16, sparsity=0.1, keep_zeros=True)
    straight, recorder = network(), Recorder(9)
    with torch.no_grad():
        straight[0].weight[:, :6] = 0
    train(name, straight, settings, callback=recorder)
    resumed = network(seed=5)
    saved = copy.deepcopy(recorder.saved)
    train(name, resumed, settings, resume=recorder.saved)
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert recorder.saved["step"] == saved["step"]  # what was given stays the caller's
    assert recorder.saved["history"] == saved["history"]


def test_a_row_that_starts_at_zero_and_frozen_weights_train(name):
    model = network()
    with torch.no_grad():
        model[4].weight.zero_()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    notes = []
    callback = Callback()
    callback.on_warning = notes.append
    run = train(name, model, TrainingSettings(3, 16, sparsity=0.5), callback=callback)
    assert torch.equal(model[0].weight, frozen)
    assert "frozen weights are not pruned: 0.weight" in notes
    assert run.total == 160
    assert run.masked == 80
    assert model[4].weight.isfinite().all()


class Recorder(Callback):
    """Keeps the state after one step, as a checkpoint would."""

    def __init__(self, step):
        self.step = step
        self.saved = None

    def on_step(self, run):
        if run.step == self.step:
            self.saved = copy.deepcopy(run.state_dict())


@pytest.mark.parametrize("step", [1, 8, 11, 16, 21, 24])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, step):
    straight, recorder = network(), Recorder(step)
    first = train(name, straight, callback=recorder)
    resumed = network(seed=5)  # other weights: all must come from the saved state
    second = train(name, resumed, resume=recorder.saved)
    for key, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    for key in first.masks:
        assert torch.equal(first.masks[key], second.masks[key])
    assert [e["loss"] for e in first.history] == [e["loss"] for e in second.history]


def test_masked_weights_and_their_momentum_are_zero_after_every_step(name):
    data, seen = blobs(), []

    class Check(Callback):
        def on_step(self, run):
            for key, weight in run.weights.items():
                mask = run.masks[key]
                assert (weight[~mask] == 0).all()
                dormant = getattr(run.optimizer, "dormant", ())
                for slot, value in run.optimizer.state.get(weight, {}).items():
                    same = isinstance(value, torch.Tensor) and value.shape == weight.shape
                    if same and slot not in dormant:
                        # So a weight that grows back starts without momentum.
                        assert (value[~mask] == 0).all(), slot
            seen.append(run.masked)

    train(name, network(), data=data, callback=Check())
    assert len(seen) == 24
    assert seen[-1] == 576


def test_the_exact_cut_leaves_15_percent_of_training(name):
    masked = []
    callback = Callback()
    callback.on_step = lambda run: masked.append(run.masked)
    train(name, network(), callback=callback)
    method_ends_late = method.get(name).Config().end > 0.85
    if not method_ends_late:
        assert set(masked[int(0.85 * 24) :]) == {576}


def test_nan_loss_stops_with_a_remedy(name):
    data = blobs()
    data.train.batches(4)
    x, y = next(iter(data.train.batches(128)))
    x[7] = float("nan")
    poisoned = copy.copy(data)
    object.__setattr__(poisoned, "train", type(data.train)(x, y))
    with pytest.raises(RunError, match="loss is nan") as error:
        train(name, network(), data=poisoned)
    assert "--lr" in error.value.do


def test_it_learns(name):
    from lpss_cli.training.evaluation import evaluate

    data, model = blobs(), network()
    train(name, model, TrainingSettings(20, 32, sparsity=0.5), data)
    assert evaluate(model, data.test, data.task)["accuracy"] > 0.9  # chance is 0.25


def test_it_says_where_it_comes_from_and_what_its_flags_mean(name):
    from lpss_cli.utils.options import options

    cls = method.get(name)
    assert cls.paper
    assert all(item.help for item in options(cls.Config).values())
