"""LpSS: what goes on a sphere, how it ranks, and semi-pruning."""

import itertools

import pytest
import torch
from helpers import blobs, network
from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.methods.lpss import SparsityPath
from lpss_cli.optim.lpsgd import LpSGD
from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


def run(model, options=None, settings=None, callback=None, data=None):
    made = method.make("lpss", {"frequency": 2, **(options or {})})
    return Trainer(
        model,
        data or blobs(),
        made,
        settings or TrainingSettings(3, 16, sparsity=0.8),
        callback=callback,
    ).train()


def spheres(state):
    return {name: fact["p"] for name, fact in state.layer_info.items() if "p" in fact}


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"0.weight": 1.5, "2.weight": 1.5, "4.weight": 1.5}),  # auto, of few inputs
        ({"p": ("1.3,1.1*2",)}, {"0.weight": 1.3, "2.weight": 1.1, "4.weight": 1.1}),
        ({"p": ("0.5",)}, {"0.weight": 0.5, "2.weight": 0.5, "4.weight": 0.5}),
        ({"p": ("1.2", "2*=1.07")}, {"0.weight": 1.2, "2.weight": 1.07, "4.weight": 1.2}),
        ({"p": ("0.weight=2",)}, {"0.weight": 2.0, "2.weight": 1.5, "4.weight": 1.5}),
        ({"off_sphere": ("4",)}, {"0.weight": 1.5, "2.weight": 1.5}),
        ({"off_sphere": ("0*", "4*")}, {"2.weight": 1.5}),
        ({"p": ("1.0714",)}, dict.fromkeys(("0.weight", "2.weight", "4.weight"), 15 / 14)),
    ],
)
def test_which_weight_sits_on_which_sphere(options, expected):
    state = run(deep(), options)
    assert spheres(state) == pytest.approx(expected)
    assert isinstance(state.optimizer, LpSGD)
    groups = {id(p): g["p"] for g in state.optimizer.param_groups for p in g["params"]}
    assert len(groups) == 6  # every parameter once
    for name, weight in state.weights.items():
        assert groups[id(weight)] == pytest.approx(expected.get(name))


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(InputError, match="matches no weight"):
        run(deep(), {"p": ("conv*=1.2",)})
    with pytest.raises(InputError, match="matches no weight"):
        run(deep(), {"off_sphere": ("conv*",)})


def test_what_is_not_pruned_may_sit_on_a_sphere():
    state = run(deep(), settings=TrainingSettings(2, 16, sparsity=0.5, skip=("4*", "0*")))
    assert list(state.weights) == ["2.weight"]
    assert set(spheres(state)) == {"0.weight", "2.weight", "4.weight"}
    assert state.masked == 128


def test_radii_stay_and_eta_follows_p():
    model = deep()
    radius = model[0].weight.detach().abs().pow(1.15).sum(1).pow(1 / 1.15)
    state = run(model, {"p": ("1.15",), "eta": 0.02, "radius": "fixed"}, TrainingSettings(2, 16))
    after = model[0].weight.detach().abs().pow(1.15).sum(1).pow(1 / 1.15)
    torch.testing.assert_close(after, radius, rtol=1e-4, atol=0)
    assert state.optimizer.param_groups[0]["initial_lr"] == 0.02
    assert run(deep(), {"p": ("0.5",)}).optimizer.param_groups[0]["initial_lr"] < 0.01


def test_cut_weights_return_with_their_remembered_value():
    """With semi-pruning a masked latent competes on and can come back."""
    seen = []

    class Watch(Callback):
        before = None

        def on_step(self, state):
            masks = {k: m.clone() for k, m in state.masks.items()}
            if self.before:
                for key, weight in state.weights.items():
                    back = masks[key] & ~self.before[key]
                    if back.any():
                        latent = state.optimizer.state[weight].get("latent")
                        seen.append((key, int(back.sum()), latent is not None))
            self.before = masks

    model = network()
    run(model, {"eta": 0.1, "frequency": 1}, TrainingSettings(6, 16, sparsity=0.5), Watch())
    assert seen
    assert all(on_sphere for _, _, on_sphere in seen)  # ordinary weights never revive


def test_masked_latents_are_kept_and_the_visible_row_is_the_masked_latent():
    model = deep()
    state = run(model, {"p": ("1.5",)}, TrainingSettings(2, 16, sparsity=0.5))
    weight = state.weights["0.weight"]
    slot, mask = state.optimizer.state[weight], state.masks["0.weight"]
    assert (~mask).any()
    assert (slot["latent"][~mask] != 0).any()
    assert (slot["momentum_buffer"][~mask] == 0).all()
    visible = slot["radius"] * slot["latent"].sign() * slot["latent"].abs() ** 2
    torch.testing.assert_close(weight.detach(), visible * mask)


def test_transposed_and_grouped_convolutions_and_attention_train():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 6, 2)
            self.grouped = nn.ConvTranspose2d(6, 6, 2, groups=2)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.out = nn.Linear(6, 4)

        def forward(self, x):
            x = self.grouped(self.up(x.view(-1, 3, 2, 2))).flatten(2).transpose(1, 2)
            return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    state = run(Odd(), settings=TrainingSettings(2, 16, sparsity=0.5))
    assert set(spheres(state)) == {
        "up.weight", "attention.in_proj_weight", "attention.out_proj.weight",
            "out.weight",
    }  # fmt: skip
    row_dims = [g["row_dim"] for g in state.optimizer.param_groups if g["p"]]
    assert sorted(row_dims) == [0, 1]
    assert state.masked == round(0.5 * state.total)


def test_every_path_is_a_choice_and_every_choice_a_path():
    for name in ("lpss", "lpss-published"):
        (choices,) = (o.choices for o in method.options_of(method.get(name)) if o.name == "path")
        assert set(choices) == set(SparsityPath.registry)


def test_only_methods_that_steer_the_hoyer_sparsity_plan_one():
    fan_ins, targets = {"a": 64, "b": None}, {"a": 0.9, "b": 0.9}
    assert method.make("lpss", {"p": 1.2}).plan_layers(fan_ins, targets) == {"a": {"p": 1.2}}
    assert method.make("gmp").plan_layers(fan_ins, targets) == {}
    with pytest.raises(InputError, match="'gmp' does not steer the Hoyer sparsity"):
        method.make("gmp").plan_layers(fan_ins, targets, 0.7)


CONTROLLER = {"path": "controller", "begin": 0.2, "end": 0.8}


def test_the_controller_starts_from_a_random_mask_and_from_a_checkpoints_own():
    seen = []

    class First(Callback):
        def on_start(self, state):
            seen.append(state.masked)

    run(deep(), CONTROLLER, callback=First())
    run(deep(), {**CONTROLLER, "initial_sparsity": 0.5}, callback=First())
    model = deep()
    with torch.no_grad():
        model[2].weight[:, :4] = 0
    run(model, CONTROLLER, TrainingSettings(3, 16, sparsity=0.8, keep_zeros=True), First())
    run(deep(), CONTROLLER, TrainingSettings(1, 16, sparsity=0.8, keep_zeros=True), First())
    assert seen == [round(0.2 * 512), 256, 64, 0]


def test_the_controller_drops_and_grows_and_the_cut_is_exact():
    masks, masked = [], []

    class Watch(Callback):
        def on_step(self, state):
            masks.append({k: m.clone() for k, m in state.masks.items()})
            masked.append(state.masked)

    state = run(
        deep(),
        {**CONTROLLER, "drop_threshold": 0.6},
        TrainingSettings(6, 16, sparsity=0.8),
        Watch(),
    )
    moves = [
        (int((b[k] & ~a[k]).sum()), int((~b[k] & a[k]).sum()))
        for b, a in itertools.pairwise(masks)
        for k in a
    ]
    assert any(dropped and grown for dropped, grown in moves)
    assert masked[8] == round(0.2 * 512)  # before begin
    assert masked[8] < masked[30] < state.masked
    assert state.masked == round(0.8 * 512)


@pytest.mark.parametrize("p", ["0.5", "1.15"])
def test_a_grown_weight_without_a_latent_learns(p):
    """The signed-power rule gives a latent of zero no gradient: growth has to seed it."""
    model = deep()
    with torch.no_grad():
        model[0].weight[:, :6] = 0
        model[2].weight[:, :8] = 0
    before = model[0].weight == 0
    options = {**CONTROLLER, "p": (p,), "drop_threshold": 0.8, "frequency": 2}
    state = run(model, options, TrainingSettings(6, 16, sparsity=0.5, keep_zeros=True))
    grown = state.masks["0.weight"] & before
    assert grown.any()
    assert (state.weights["0.weight"][grown].abs() > 1e-6).all()


def test_the_published_preset_follows_the_published_schedule():
    rates = []
    callback = Callback()
    callback.on_step = lambda state: rates.append(
        [group["lr"] for group in state.optimizer.param_groups]
    )
    made = method.make("lpss-published")
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    state = Trainer(
        model, blobs(), made, TrainingSettings(12, 16, sparsity=0.9), callback=callback
    ).train()
    assert state.masked == round(0.9 * 256)
    sphere, ordinary = zip(*[(r[0], r[-1]) for r in rates], strict=True)
    # 8 steps an epoch: peak at E/6, a quarter of it at E/3, 0.002 of it three epochs from the end.
    published = {0: 0.04, 16: 2.0, 32: 0.5, 72: 0.004}
    assert {k: 256 * sphere[k] for k in published} == pytest.approx(published)
    assert {k: ordinary[k] for k in published} == pytest.approx(published)
    assert 0.0002 < ordinary[-1] < 0.0005
    unit = state.optimizer.state[state.weights["0.weight"]]["radius"]
    assert torch.equal(unit, torch.ones_like(unit))
