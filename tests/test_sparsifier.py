"""Exact sparsity in a loop of the user's own: the trainer's results, whoever steps."""

import pytest
import torch
from helpers import blobs, network
from torch import nn

from lpss_cli import InputError, RunError, Sparsifier, describe, sparsify
from lpss_cli.data import epoch_order
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import make, registry
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

BLOBS = blobs()
TRAIN, TEST = (BLOBS.train.x, BLOBS.train.y), (BLOBS.test.x, BLOBS.test.y)
EPOCHS, SIZE = 8, 16
STEPS = EPOCHS * len(TRAIN[0]) // SIZE


def plain(seed=0):
    """Linear 12-40-4: no BatchNorm, whose statistics the trainer estimates from its own batches."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 4))


def batches(seed=0, epochs=EPOCHS):
    for epoch in range(epochs):
        yield from BLOBS.train.batches(
            SIZE, order=epoch_order(len(BLOBS.train), seed, epoch), drop_last=True
        )


def train(model, optimizer, closure=False, after=None, examples=None):
    """A loop as people write it."""
    for x, y in examples or batches():

        def loss(x=x, y=y):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(x), y)
            value.backward()
            return value

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()
        if after is not None:
            after()


def zeros(model):
    return sum(int((w == 0).sum()) for w in model.parameters() if w.dim() == 2)


def accuracy(model):
    return float((model.eval()(TEST[0]).argmax(1) == TEST[1]).float().mean())


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", sorted(registry()))
def test_a_loop_of_ones_own_gives_the_trainers_bits(name, closure):
    theirs, ours = plain(), plain()
    settings = TrainingSettings(EPOCHS, SIZE, sparsity=0.8, keep_zeros=True)
    run = Trainer(theirs, BLOBS, make(name), settings).train()
    torch.manual_seed(0)
    examples = TRAIN if name == "snip" else None
    sparsifier = Sparsifier(ours, STEPS, sparsity=0.8, method=name, train=examples, batch_size=SIZE)
    train(ours, sparsifier.optimizer, closure)
    result = sparsifier.finish()
    assert result.report.zeros == zeros(ours) == round(0.8 * 640)
    assert all(torch.equal(run.masks[name], mask) for name, mask in result.masks.items())
    for (key, theirs_), ours_ in zip(theirs.state_dict().items(), ours.parameters(), strict=True):
        assert torch.equal(theirs_, ours_), key


def test_masked_weights_are_zero_after_every_step():
    model = plain()
    sparsifier = Sparsifier(model, STEPS, sparsity=0.9)
    counts = []

    def look():
        run = sparsifier.run
        assert all(bool((w[~run.masks[n]] == 0).all()) for n, w in run.weights.items())
        counts.append(run.masked)

    train(model, sparsifier.optimizer, after=look)
    cut = sparsifier.run.final_prune_step
    assert cut == int(0.7 * STEPS)
    assert counts[0] == 0 < counts[cut - 2] < counts[cut - 1] == counts[-1] == round(0.9 * 640)
    assert accuracy(model) > 0.8


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_of_ones_own_keeps_its_rates(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    sparsifier = Sparsifier(model, STEPS, method="gmp", optimizer=optimizer)
    assert sparsifier.optimizer is optimizer
    train(model, optimizer, after=scheduler.step)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    assert sparsifier.finish().report.zeros == round(0.9 * 640)
    # After the end it is an ordinary optimizer again.
    train(model, optimizer)
    assert zeros(model) < 300  # units that had lost all inputs stay dead


def test_a_schedule_of_ones_own_drives_lpsgd():
    model = plain()
    sparsifier = Sparsifier(model, STEPS, p=1.3, schedule=False)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sparsifier.optimizer, STEPS)
    train(model, sparsifier.optimizer, after=scheduler.step)
    # The sum of half a cosine from η = 0.01 down to 0.
    travels = [fact["travel"] for fact in sparsifier.run.layer_info.values()]
    assert travels == pytest.approx([0.01 * (STEPS + 1) / 2] * 2)
    result = sparsifier.finish()
    assert result.report.zeros == 576
    assert {layer.p for layer in result.report.layers} == {4 / 3} or {
        round(layer.p, 2) for layer in result.report.layers
    } == {1.3}
    assert accuracy(model) > 0.8


def test_a_gradient_scaler_changes_nothing():
    def trained(scaler):
        model = plain()
        sparsifier = Sparsifier(model, STEPS)
        for x, y in batches():
            sparsifier.optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(sparsifier.optimizer)
            scaler.update()
        sparsifier.finish()
        return list(model.parameters())

    # Powers of two: scaling and unscaling are exact.
    scaled = trained(torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000))
    bare = trained(torch.amp.GradScaler("cpu", enabled=False))
    assert all(torch.equal(a, b) for a, b in zip(scaled, bare, strict=True))


def test_two_schedules_are_noticed():
    model = plain()
    sparsifier = Sparsifier(model, STEPS)
    scheduler = torch.optim.lr_scheduler.StepLR(sparsifier.optimizer, 1, 0.5)
    with pytest.raises(InputError, match="something else changes the learning rates"):
        train(model, sparsifier.optimizer, after=scheduler.step)


def test_a_loop_that_ends_early_is_cut_with_a_warning():
    model = plain()
    sparsifier = Sparsifier(model, 10 * STEPS)
    train(model, sparsifier.optimizer)
    with pytest.warns(UserWarning, match=f"after {STEPS} of {10 * STEPS} steps"):
        result = sparsifier.finish()
    assert result.report.zeros == zeros(model) == 576
    assert sparsifier.finish().report.zeros == 576  # a second time changes nothing


def test_more_steps_than_announced_keep_the_masks():
    model = plain()
    sparsifier = Sparsifier(model, STEPS // 2)
    train(model, sparsifier.optimizer)
    assert sparsifier.run.step == STEPS
    assert max(g["lr"] for g in sparsifier.optimizer.param_groups) < 0.001
    assert sparsifier.finish().report.zeros == zeros(model) == 576


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lpss", {}),
        ("gsm", {}),
        ("rigl", {}),
        ("lottery", {}),
        ("gmp", {"layers": "2.*=0.8", "frequency": 2}),  # from what was zero at the start
    ],
)
def test_a_saved_state_goes_on_to_the_same_bits(name, options, tmp_path):
    whole, resumed = plain(), plain(seed=5)
    if options:
        whole[2].weight.data[:, :15] = 0
    reference = Sparsifier(whole, STEPS, method=name, **options)
    for number, batch in enumerate(batches()):
        train(whole, reference.optimizer, examples=[batch])
        if number == STEPS // 2:
            torch.save(reference.state_dict(), tmp_path / "state.pt")
    again = Sparsifier(resumed, STEPS, method=name, **options)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.run.step == STEPS // 2 + 1
    train(resumed, again.optimizer, examples=list(batches())[again.run.step :])
    assert again.finish().report.zeros == 576
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
    other = Sparsifier(network(), STEPS, method=name)
    with pytest.raises(InputError, match="masks of other weights"):
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_layer_has_a_target_of_its_own():
    model = plain()
    sparsifier = Sparsifier(model, STEPS, sparsity=0.8, layers="2.*=0.5")
    train(model, sparsifier.optimizer)
    assert sparsifier.finish().report.zeros == zeros(model) == 512
    assert int((model[2].weight == 0).sum()) == 80


def test_zeros_of_the_start_stay_zero():
    model = plain()
    sparsify(model, TRAIN, sparsity=0.5, method="gmp", epochs=2, batch_size=SIZE)
    before = {n: w == 0 for n, w in model.named_parameters() if w.dim() == 2}
    sparsifier = Sparsifier(model, STEPS, sparsity=0.9, method="gmp")
    train(model, sparsifier.optimizer)
    sparsifier.finish()
    weights = dict(model.named_parameters())
    assert all(bool((weights[n][zero] == 0).all()) for n, zero in before.items())
    assert zeros(model) == 576


def test_batchnorm_is_estimated_anew_where_there_are_examples():
    def statistics(**more):
        model = network()
        sparsifier = Sparsifier(model, STEPS, batch_size=SIZE, seed=3, **more)
        found = []
        train(
            model, sparsifier.optimizer, after=lambda: found.append(model[1].running_mean.clone())
        )
        return found, sparsifier.run.final_prune_step

    torch.manual_seed(0)
    with_, cut = statistics(train=TRAIN)
    torch.manual_seed(0)
    without, _ = statistics()
    assert torch.equal(with_[cut - 2], without[cut - 2])
    assert not torch.equal(with_[cut - 1], without[cut - 1])
    assert bool((without[cut - 1] != 0).all())  # and not reset for want of examples


@pytest.mark.parametrize("name", ["gmp", "snip"])
def test_a_frozen_norm_stays_frozen(name):
    model = network()
    model[1].eval()
    before = {key: tensor.clone() for key, tensor in model[1].state_dict().items()}
    sparsifier = Sparsifier(model, 8, method=name, train=TRAIN, batch_size=SIZE)
    train(model, sparsifier.optimizer, examples=list(batches(epochs=1)))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(model[1].state_dict()[key], before[key]) for key in before if "_" in key)
    assert sparsifier.finish().report.zeros == 576


def test_weights_made_from_others_are_warned_of():
    model, said = plain(), []
    nn.utils.parametrizations.weight_norm(model[0])
    callback = Callback()
    callback.on_warning = said.append
    sparsifier = Sparsifier(model, STEPS, sparsity=0.5, callback=callback)
    assert said == ["weights made from other parameters are not pruned: 0.weight"]
    assert list(sparsifier.run.weights) == ["2.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0 is not an integer"),
        ({"steps": 9.5}, r"steps=9\.5 is not an integer"),
        ({"steps": float("inf")}, "steps=inf is not an integer"),
        ({"sparsity": 1.0}, "outside"),
        ({"sparsity": "most"}, "sparsity 'most' is not a number"),
        ({"method": "lps"}, "unknown method"),
        ({"method": "snip"}, "looks at training examples"),
        ({"skip": "nothing*"}, "nothing"),
        ({"p": 1.01}, "1.01"),
        ({"optimizer": "sgd"}, "optimizer of its own"),
        ({"optimizer": "sgd", "method": "gmp", "lr": 0.1}, "the optimizer already sets lr"),
        ({"optimizer": "other", "method": "gmp"}, "none of the model's weights"),
        # Another optimizer would revive the zeros of the rest.
        ({"optimizer": "part", "method": "gmp"}, r"the optimizer does not train 2\.weight"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    model = plain()
    before = [p.detach().clone() for p in model.parameters()]
    made = {
        "sgd": torch.optim.SGD(model.parameters()),
        "other": torch.optim.SGD(plain().parameters()),
        "part": torch.optim.SGD(model[0].parameters()),
    }
    if "optimizer" in arguments:
        arguments = {**arguments, "optimizer": made[arguments["optimizer"]]}
    with pytest.raises(InputError, match=message):
        Sparsifier(model, **{"steps": STEPS, **arguments})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_part_that_the_optimizer_does_not_train_may_be_skipped():
    model = plain()
    sparsifier = Sparsifier(
        model,
        STEPS,
        sparsity="10x",
        method="gmp",
        optimizer=torch.optim.SGD(model[0].parameters()),
        skip="2.*",
    )
    assert (sparsifier.run.sparsity, sparsifier.run.total) == (pytest.approx(0.9), 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 0.8}, r"is of sparsity=0\.9, and this sparsifier of sparsity=0\.8"),
        ({"steps": 2 * STEPS}, f"is of steps={STEPS}, and this sparsifier of steps={2 * STEPS}"),
        ({"method": "gmp"}, r"is of method=lpss, p=1\.3, and this sparsifier of method=gmp$"),
        ({"p": 1.2}, r"is of p=1\.3, and this sparsifier of p=1\.2"),
    ],
)
def test_the_state_of_other_arguments_is_refused_and_changes_nothing(arguments, message):
    made = {"steps": STEPS, "p": 1.3}
    state = Sparsifier(plain(), **made).state_dict()
    asked = {**made, **arguments}
    if "method" in arguments:
        del asked["p"]
    model = plain(seed=5)
    other = Sparsifier(model, **asked)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match=message):
        other.load_state_dict(state)
    with pytest.raises(InputError, match="not a state of a Sparsifier"):
        other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_compiled_network_has_its_own_names():
    compiled = nn.Module()  # what torch.compile returns holds the network so
    compiled._orig_mod = plain()
    sparsifier = Sparsifier(compiled, STEPS, skip="2.*")
    assert list(sparsifier.run.masks) == ["0.weight"]
    assert [layer.name for layer in describe(compiled).layers] == ["0.weight", "2.weight"]
    with pytest.warns(UserWarning, match="the final pruning happens now"):
        assert sparsifier.finish().model is compiled


def test_weights_of_before_the_cut_are_noticed():
    model = plain()
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparsifier = Sparsifier(model, 2)
    train(model, sparsifier.optimizer, examples=[TRAIN] * 2)
    model.load_state_dict(best)
    with pytest.raises(RunError, match=r"0\.weight is not zero where it is masked"):
        sparsifier.finish()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_that_moves_takes_the_masks_along():
    model = network()
    sparsifier = Sparsifier(model, STEPS)
    model.to("cuda")
    train(model, sparsifier.optimizer, examples=[(x.cuda(), y.cuda()) for x, y in batches()])
    result = sparsifier.finish()
    assert result.report.zeros == 576
    assert all(mask.is_cuda for mask in result.masks.values())


@pytest.mark.parametrize(
    ("option", "old"),
    [
        (["2.*"], "['2.*']"),  # as str() wrote a list
        (("2.*", "0.w*"), "('2.*', '0.w*')"),
        (("2.*",), "('2.*',)"),
        ("2.*", "2.*"),
    ],
)
def test_the_state_of_an_older_version_with_several_values_is_of_the_same_arguments(option, old):
    sparsifier = Sparsifier(plain(), STEPS, off_sphere=option)
    state = sparsifier.state_dict()
    state["made"] = {**state["made"], "off_sphere": old}
    sparsifier.load_state_dict(state)
    state["made"]["off_sphere"] = "1.*"
    with pytest.raises(InputError, match=r"off_sphere=1\.\*"):
        sparsifier.load_state_dict(state)


def test_deprecated_names_still_work():
    said = []
    callback = Callback()
    callback.on_warning = said.append
    model = plain()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.warns(DeprecationWarning, match="watcher is now callback"):
        sparsifier = Sparsifier(model, STEPS, sparsity=0.5, watcher=callback)
    assert said == ["weights made from other parameters are not pruned: 0.weight"]
    with pytest.warns(DeprecationWarning, match="cut_step is now final_prune_step"):
        assert sparsifier.run.cut_step == sparsifier.run.final_prune_step
