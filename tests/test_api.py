"""lpss from Python: one call, and LpSGD in a loop of one's own."""

import inspect

import pytest
import torch
from helpers import blobs, network
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lpss_cli
from lpss_cli import InputError, LpSGD, Sparsifier, describe, sparsify
from lpss_cli.sparsity.hoyer_prediction import suitable_p
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.utils.options import options

BLOBS = blobs()
TRAIN, TEST = (BLOBS.train.x, BLOBS.train.y), (BLOBS.test.x, BLOBS.test.y)


def loader(**more):
    return DataLoader(TensorDataset(*TRAIN), batch_size=16, **more)


def zeros(model):
    return sum(int((w == 0).sum()) for w in model.parameters() if w.dim() == 2)


@pytest.mark.parametrize("train", [TRAIN, TensorDataset(*TRAIN), loader()])
def test_a_model_becomes_sparse_in_place(train):
    model = network()
    result = sparsify(model, train, TEST, sparsity=0.8, epochs=8, batch_size=16)
    assert result.model is model
    assert zeros(model) == result.report.zeros == 512
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == 512
    assert result.after["accuracy"] > 0.9 > result.before["accuracy"]
    assert [epoch["epoch"] for epoch in result.history] == list(range(1, 9))
    assert {layer.p for layer in result.report.layers} == {suitable_p(12, 0.8), suitable_p(40, 0.8)}
    assert all(layer.predicted for layer in result.report.layers)


def test_a_loader_is_used_as_it_is():
    seen = []

    class Spied(TensorDataset):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    batches = DataLoader(Spied(*TRAIN), batch_size=48)  # the last batch has 32
    result = sparsify(network(), batches, epochs=2, method="gmp")
    # One look at the first batch, then the loader's own order; at the exact cut, after the first
    # batch of the second epoch, another pass for BatchNorm's statistics.
    whole = list(range(128))
    assert seen == whole[:48] + whole + whole[:48] + whole + whole[48:]
    assert result.before is result.after is None


def test_a_sampler_of_several_processes_is_told_the_epoch():
    class Sampler(torch.utils.data.SequentialSampler):
        epochs = ()

        def set_epoch(self, epoch):
            Sampler.epochs += (epoch,)

    batches = loader(sampler=Sampler(TensorDataset(*TRAIN)))
    sparsify(network(), batches, epochs=3, method="static")
    assert sorted(set(Sampler.epochs)) == [0, 1, 2]


def test_p_and_the_methods_options_reach_it():
    result = sparsify(network(), TRAIN, p=0.5, epochs=1, eta=0.001)
    assert {layer.p for layer in result.report.layers} == {0.5}
    result = sparsify(network(), TRAIN, p=["1.3", "4.*=1.5"], epochs=1)
    assert [layer.p for layer in result.report.layers] == [4 / 3, 1.5] or [
        round(layer.p, 2) for layer in result.report.layers
    ] == [1.3, 1.5]
    with pytest.raises(InputError, match="--eta"):
        sparsify(network(), TRAIN, method="gmp", eta=0.1)


def test_one_shot_skip_and_mode():
    model = network().eval()
    result = sparsify(model, TRAIN, sparsity=0.5, epochs=0, method="gmp", skip="4.*")
    assert not model.training
    assert zeros(model) == 240
    assert int((model[4].weight == 0).sum()) == 0
    assert [layer.name for layer in result.report.layers] == ["0.weight"]


def test_regression_and_a_loss_of_ones_own():
    x = torch.randn(64, 12)
    y = x @ torch.randn(12, 1)
    result = sparsify(nn.Linear(12, 1), (x, y), (x, y), sparsity=0.25, epochs=2, batch_size=8)
    assert set(result.after) == {"r2", "rmse", "mae"}
    loss = nn.L1Loss()
    result = sparsify(nn.Linear(12, 1), (x, y), (x, y), sparsity=0.25, epochs=2, loss=loss)
    assert result.after == {"loss": pytest.approx(float(loss(result.model(x), y).detach()))}


def test_same_seed_same_bits():
    states = []
    for seed in (0, 0, 1):
        model = network()
        sparsify(model, TRAIN, epochs=2, batch_size=16, seed=seed)
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(12), 0)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": DataLoader(Endless())}, "number of batches"),
        ({"train": DataLoader(torch.zeros(8, 12))}, "yields a Tensor"),
        ({"train": DataLoader([(1, 2, 3)])}, "of 3"),
        ({"train": 5}, "training part"),
        ({"sparsity": 1.0}, "outside"),
        ({"p": 1.01}, "1.01"),
        ({"method": "lps"}, "unknown method"),
        ({"skip": "nothing*"}, "nothing"),
        ({"batch_size": 0}, "batch_size 0 is out of range"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_touched(arguments, message):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match=message):
        sparsify(model, **{"train": TRAIN, **arguments})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_describe_counts_a_model_in_memory():
    model = network()
    with torch.no_grad():
        model[0].weight[:, :6] = 0
    found = describe(model)
    assert (found.path, found.zeros, found.weights) == ("Sequential", 240, 640)
    assert found.layers[0].sparsity == 0.5


def test_lpsgd_drops_into_a_loop_of_ones_own():
    model = network()
    optimizer = LpSGD(model.parameters(), lr=0.05, p=1.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    for _ in range(10):
        for x, y in loader(shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()
    accuracy = float((model.eval()(TEST[0]).argmax(1) == TEST[1]).float().mean())
    assert accuracy > 0.9


def test_the_public_names_are_those_of_the_package():
    for name in lpss_cli.__all__:
        assert getattr(lpss_cli, name) is not None


def test_deprecated_names_of_keywords_still_work():
    epochs = []
    callback = Callback()
    callback.on_epoch = lambda run: epochs.append(run.history[-1]["epoch"])
    with pytest.warns(DeprecationWarning, match="watcher is now callback"):
        sparsify(network(), TRAIN, epochs=2, method="static", watcher=callback)
    assert epochs == [1, 2]
    info = {"4.weight": {"row_dim": 0}}
    with pytest.warns(DeprecationWarning, match="facts is now layer_info"):
        named = describe(network(), facts=info)
    assert [layer.name for layer in named.layers] == ["4.weight"]
    assert describe(network(), info) == named == describe(network(), layer_info=info)


@pytest.mark.parametrize("function", [sparsify, Sparsifier])
def test_the_keywords_and_their_defaults_are_those_of_the_declared_options(function):
    declared = {**options(TrainingOptions), **options(MethodOptions)}
    parameters = inspect.signature(function).parameters
    shared = [name for name in parameters if name in declared]
    assert {"sparsity", "method", "batch_size", "layers", "skip", "seed"} <= set(shared)
    for name in shared:
        assert parameters[name].default == declared[name].python_default
        assert f" {name}: " in function.__doc__
    assert {"p", "chosen", "_chosen"}.isdisjoint(parameters)
