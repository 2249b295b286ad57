"""LpSGD against the literal float64 reference, and its invariants."""

import copy
import io

import numpy as np
import pytest
import torch
from reference.lpsgd_reference import DualRow, PowerRow, ordinary_step

from lpss_cli.errors import InputError
from lpss_cli.optim import native
from lpss_cli.optim.lp_step import default_eta, dual_step, power_step
from lpss_cli.optim.lpsgd import LpSGD
from lpss_cli.sparsity.lp_geometry import lp_norm, row_dims

EVERY_P = [0.2, 0.5, 0.8, 1.0, 1.05, 1.0714, 1.15, 1.2, 1.5, 2.0, 3.0, 4.0]
MOMENTA = [(0.9, 0.0, True), (0.9, 0.0, False), (0.8, 0.1, False), (0.0, 0.0, False)]


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def path(request, monkeypatch):
    """Everything here holds for both ways to take a step."""
    if request.param == "plain":
        monkeypatch.setattr(native, "fits", lambda rows: False)
    elif native.library() is None:
        pytest.skip("there is no C++ compiler")


def weight(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype))


@pytest.mark.parametrize("mode", ["fixed", "learned", "unit"])
@pytest.mark.parametrize(("momentum", "dampening", "nesterov"), MOMENTA)
@pytest.mark.parametrize("p", EVERY_P)
def test_100_random_steps_equal_the_reference(p, momentum, dampening, nesterov, mode):
    w = weight(3, 7)
    start = w.detach().numpy().copy()
    rows = [(DualRow if p > 1 else PowerRow)(row, _exact(p), mode) for row in start]
    optimizer = LpSGD(
        [w], p=p, eta=0.02, momentum=momentum, dampening=dampening, nesterov=nesterov,
        radius=mode, radius_lr=0.01,
    )  # fmt: skip
    rng, found, expected = np.random.default_rng(1), [], []
    for _ in range(100):
        g = rng.standard_normal((3, 7))
        w.grad = torch.from_numpy(g)
        optimizer.step()
        for row, row_g in zip(rows, g, strict=True):
            row.step(
                row_g, eta=0.02, mu=momentum, dampening=dampening, nesterov=nesterov,
                radius_lr=0.01 if mode == "learned" else None,
            )  # fmt: skip
        expected.append([row.w() for row in rows])
        found.append(w.detach().numpy().copy())
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 0.99])
def test_large_steps_equal_the_reference_in_fp32(eta):
    w = weight(3, 50, dtype=torch.float32)
    rows = [DualRow(row, 1.03, "fixed") for row in w.detach().double().numpy()]
    optimizer = LpSGD([w], p=1.03, eta=eta, radius="fixed")
    for seed in range(1, 5):
        w.grad = weight(3, 50, seed=seed, dtype=torch.float32).detach()
        optimizer.step()
        for row, g in zip(rows, w.grad.double().numpy(), strict=True):
            row.step(g, eta=eta, mu=0.9, dampening=0.0, nesterov=True)
        expected = np.stack([row.w() for row in rows])
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-3, atol=1e-5)


def _exact(p):
    return 15 / 14 if p == 1.0714 else p


@pytest.mark.parametrize(("momentum", "dampening", "nesterov"), MOMENTA)
def test_ordinary_parameters_take_the_momentum_step(momentum, dampening, nesterov):
    bias, m = weight(5), None
    expected = bias.detach().numpy().copy()
    optimizer = LpSGD(
        [bias], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov,
        weight_decay=0.03,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for _ in range(20):
        g = rng.standard_normal(5)
        bias.grad = torch.from_numpy(g.copy())
        optimizer.step()
        expected, m = ordinary_step(
            expected, m, g, lr=0.1, mu=momentum, dampening=dampening, nesterov=nesterov,
            weight_decay=0.03,
        )  # fmt: skip
        np.testing.assert_allclose(bias.detach().numpy(), expected, rtol=1e-12)


def test_both_rules_move_along_the_same_great_circle_at_p_2():
    v = torch.nn.functional.normalize(weight(1, 9).detach(), dim=1)
    d = weight(1, 9, seed=5).detach()
    dual, signed = v.clone(), v.clone()
    live = torch.tensor([[True]])
    dual_step(dual, d, 0.01, 2.0, (1,), live)
    power_step(signed, d, 0.01, (1,), live)
    basis = torch.linalg.qr(torch.cat([v, d]).T).Q  # the plane of v and d
    for moved in (dual, signed):
        assert moved.norm().item() == pytest.approx(1)
        torch.testing.assert_close(moved @ basis @ basis.T, moved, rtol=0, atol=1e-12)
    tangent = d - (d @ v.T) * v
    for moved in (dual, signed):
        assert (moved @ tangent.T).item() < 0
    # Equal direction, different step length.
    assert (v @ dual.T).item() != pytest.approx((v @ signed.T).item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", EVERY_P)
def test_rows_stay_on_their_sphere(p, dtype):
    w = weight(4, 3, 5, 5, dtype=torch.float32)
    w = torch.nn.Parameter(w.detach().to(dtype))
    optimizer = LpSGD([w], p=p, eta=0.05, radius="fixed")
    optimizer.take_latents()
    state = optimizer.state[w]
    radius = state["radius"].clone()
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        w.grad = torch.randn(w.shape, generator=generator).to(dtype)
        optimizer.step()
    dims = row_dims(w)
    q = _exact(p) / (_exact(p) - 1) if p > 1 else 2.0
    on_q = lp_norm(state["latent"], q, dims)
    torch.testing.assert_close(on_q, torch.ones_like(on_q), rtol=1e-5, atol=1e-5)
    assert torch.equal(state["radius"], radius)
    assert state["latent"].dtype == torch.float32
    assert w.isfinite().all()
    if dtype == torch.float32:
        measured = lp_norm(w.detach(), _exact(p), dims)
        torch.testing.assert_close(measured, radius, rtol=2e-5, atol=0)


@pytest.mark.parametrize("p", EVERY_P)
def test_the_first_latent_is_the_given_weight(p):
    w = weight(4, 6, dtype=torch.float32)
    before = w.detach().clone()
    optimizer = LpSGD([w], p=p)
    assert torch.equal(w, before)  # construction changes nothing
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(w.detach(), before, rtol=2e-5, atol=0)


@pytest.mark.parametrize("p", [0.5, 1.15])
def test_rows_without_gradient_keep_their_latent_bit_for_bit(p):
    w = weight(3, 8, dtype=torch.float32)
    optimizer = LpSGD([w], p=p, eta=0.05)
    optimizer.take_latents()
    before = optimizer.state[w]["latent"].clone()
    for _ in range(5):
        w.grad = torch.randn(3, 8)
        w.grad[1] = 0
        optimizer.step()
    after = optimizer.state[w]["latent"]
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
    assert w.isfinite().all()


@pytest.mark.parametrize("p", [0.5, 1.15])
def test_a_row_whose_gradient_stops_stays_whatever_its_momentum(p):
    w = weight(2, 8, dtype=torch.float32)
    optimizer = LpSGD([w], p=p, eta=0.05)
    for seed in range(3):
        w.grad = weight(2, 8, seed=seed, dtype=torch.float32).detach()
        optimizer.step()
    assert (optimizer.state[w]["momentum_buffer"][1] != 0).any()
    before = w.detach().clone()
    for seed in range(20):
        w.grad = weight(2, 8, seed=seed, dtype=torch.float32).detach()
        w.grad[1] = 0
        optimizer.step()
    torch.testing.assert_close(w[1].detach(), before[1], rtol=1e-5, atol=0)
    assert not torch.allclose(w[0], before[0])


@pytest.mark.parametrize("p", [0.5, 1.15])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_extreme_gradients_move_rows_like_ordinary_ones(p, scale):
    start, g = weight(2, 6, dtype=torch.float32), torch.randn(2, 6)
    moved = []
    for factor in (1.0, scale):
        w = torch.nn.Parameter(start.detach().clone())
        optimizer = LpSGD([w], p=p, eta=0.05, radius="fixed")
        w.grad = g * factor
        optimizer.step()
        moved.append(w.detach())
    # 1e-42 is a denormal with three significant digits.
    torch.testing.assert_close(moved[1], moved[0], rtol=2e-2 if scale < 1e-40 else 1e-4, atol=1e-5)


def test_a_learned_radius_changes_by_at_most_5_percent_a_step():
    w = weight(2, 6, dtype=torch.float32)
    optimizer = LpSGD([w], p=1.15, radius="learned")
    optimizer.take_latents()
    before = optimizer.state[w]["radius"].clone()
    w.grad = torch.stack([1e30 * w[0].detach(), -1e30 * w[1].detach()])
    optimizer.step()
    ratio = (optimizer.state[w]["radius"] / before).log().flatten()
    torch.testing.assert_close(ratio, torch.tensor([-0.05, 0.05]), rtol=1e-4, atol=0)
    assert w.isfinite().all()


@pytest.mark.parametrize("mode", ["fixed", "unit", "learned"])
@pytest.mark.parametrize("p", [0.5, 1.15])
def test_rows_of_zeros_wait_for_a_gradient(p, mode):
    w = weight(3, 5, dtype=torch.float32)
    with torch.no_grad():
        w[1:] = 0
    optimizer = LpSGD([w], p=p, eta=0.05, radius=mode)
    w.grad = torch.randn(3, 5)
    w.grad[2] = 0
    optimizer.step()
    assert (w[1] != 0).all()
    assert torch.equal(w[2], torch.zeros(5))
    for _ in range(5):
        w.grad = torch.randn(3, 5)
        optimizer.step()
    assert (w != 0).all()
    assert w.isfinite().all()
    assert (optimizer.state[w]["radius"] > 0).all()


@pytest.mark.parametrize("mode", ["fixed", "unit", "learned"])
@pytest.mark.parametrize("p", [0.5, 1.15])
def test_a_row_of_zeros_survives_a_learning_rate_of_0(p, mode):
    """A warm-up may start at 0: there is no step to take a direction from yet."""
    w = torch.nn.Parameter(torch.zeros(1, 5))
    optimizer = LpSGD([w], p=p, eta=0.1, radius=mode)
    for lr in (0.0, 0.1):
        assert torch.equal(w, torch.zeros(1, 5))
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.randn(1, 5)
        optimizer.step()
    assert (w != 0).all()
    assert w.isfinite().all()


def test_radii_follow_the_schedule_of_their_group():
    moved = []
    for factor in (1.0, 0.5, 0.0):
        w = weight(1, 6)
        optimizer = LpSGD([w], p=1.15, eta=0.01, radius_lr=1e-3)
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        w.grad = weight(1, 6, seed=4).detach()
        optimizer.take_latents()
        before = optimizer.state[w]["radius"].clone()
        optimizer.step()
        moved.append((optimizer.state[w]["radius"] / before).log().item())
    assert moved[0] != 0
    assert moved[1:] == pytest.approx([moved[0] / 2, 0])


def test_weights_loaded_after_construction_are_the_start():
    w = weight(2, 6)
    optimizer = LpSGD([w], p=1.15, radius="fixed")
    loaded = weight(2, 6, seed=9).detach()
    with torch.no_grad():
        w.copy_(loaded)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(w.detach(), loaded)


@pytest.mark.parametrize("p", [0.5, 1.07])
def test_underflow_never_makes_an_unmasked_weight_zero(p):
    w = torch.nn.Parameter(torch.tensor([[1.0, 1e-3, -1e-6, 0.5]]))
    optimizer = LpSGD([w], p=p, eta=1e-3)
    optimizer.take_latents()
    with torch.no_grad():
        optimizer.state[w]["latent"][0, 2] = -1e-30
    w.grad = torch.zeros(1, 4)
    optimizer.step()
    assert (w != 0).all()
    assert w[0, 2].item() == -torch.finfo(torch.float32).tiny
    score = optimizer.log_magnitude(w)
    assert score.isfinite().all()
    assert score.argmin().item() == 2


@pytest.mark.parametrize("p", [0.5, 1.15, None])
def test_log_magnitude_is_the_log_of_the_weight(p):
    w = weight(3, 6)
    optimizer = LpSGD([w], p=p)
    for seed in range(3):
        w.grad = weight(3, 6, seed=seed).detach()
        optimizer.step()
    expected = w.detach().abs().log()
    torch.testing.assert_close(optimizer.log_magnitude(w), expected, rtol=1e-9, atol=1e-9)


def test_masked_latents_fade_for_p_above_1_and_stay_for_p_below():
    for p in (1.15, 0.5):
        w = weight(1, 8)
        optimizer = LpSGD([w], p=p, eta=0.1, momentum=0.0, nesterov=False)
        optimizer.take_latents()
        before = optimizer.state[w]["latent"].clone()
        g = weight(1, 8, seed=3).detach()
        g[0, 3] = 0  # what a mask does to the gradient
        w.grad = g
        optimizer.step()
        if p > 1:
            q = p / (p - 1)
            moved = 0.9 * before - 0.1 * g / lp_norm(g, q, (1,))
            expected = 0.9 * before / lp_norm(moved, q, (1,))
        else:
            h = g * before.abs() ** (2 / p - 1)
            tangent = h - (h * before).sum() * before
            moved = before - 0.1 * tangent / tangent.norm()
            # Only the projection and the renormalisation touch it: no gradient of its own.
            expected = moved / moved.norm()
        after = optimizer.state[w]["latent"]
        torch.testing.assert_close(after[0, 3], expected[0, 3], rtol=1e-9, atol=0)
        assert after[0, 3] != 0


def test_groups_are_split_by_kind_and_schedulers_drive_both():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = LpSGD(model.parameters(), lr=0.1, p=0.5)
    sphere, ordinary = optimizer.param_groups
    assert (sphere["p"], sphere["lr"]) == (0.5, pytest.approx(default_eta(0.5)))
    assert (ordinary["p"], ordinary["lr"], len(ordinary["params"])) == (None, 0.1, 3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([default_eta(0.5) / 10, 0.01])


def test_named_parameters_groups_and_fan_in_1():
    a, b = weight(4, 3), weight(4, 1)
    optimizer = LpSGD([{"params": [("a", a), ("b", b)], "p": 1.3, "eta": 0.2, "lr": 0.7}])
    assert [(g["p"], g["lr"], g["param_names"]) for g in optimizer.param_groups] == [
        (1.3, 0.2, ["a"]),
        (None, 0.7, ["b"]),
    ]


def test_transposed_convolutions_and_channels_last_step_like_plain_rows():
    plain = weight(6, 4, 3, 3)
    twins = {
        "transposed": (torch.nn.Parameter(plain.detach().transpose(0, 1).contiguous()), 1),
        "channels_last": (
            torch.nn.Parameter(plain.detach().to(memory_format=torch.channels_last)), 0,
        ),
    }  # fmt: skip
    reference = LpSGD([plain], p=1.15, eta=0.05)
    optimizers = {k: LpSGD([w], p=1.15, eta=0.05, row_dim=d) for k, (w, d) in twins.items()}
    for seed in range(5):
        plain.grad = weight(6, 4, 3, 3, seed=seed).detach()
        reference.step()
        for name, (w, row_dim) in twins.items():
            w.grad = plain.grad.transpose(0, 1).contiguous() if row_dim else plain.grad
            optimizers[name].step()
    torch.testing.assert_close(twins["transposed"][0].detach().transpose(0, 1), plain.detach())
    torch.testing.assert_close(twins["channels_last"][0].detach(), plain.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.5, 1.07])
def test_state_dict_round_trip_continues_bit_for_bit(p, dtype):
    def make():
        w = torch.nn.Parameter(weight(3, 6, dtype=torch.float32).detach().to(dtype))
        bias = torch.nn.Parameter(weight(3, dtype=torch.float32).detach().to(dtype))
        return w, bias, LpSGD([w, bias], p=p, eta=0.05, radius="learned")

    def train(w, bias, optimizer, seeds):
        for seed in seeds:
            w.grad = weight(3, 6, seed=seed, dtype=torch.float32).detach().to(dtype)
            bias.grad = weight(3, seed=seed, dtype=torch.float32).detach().to(dtype)
            optimizer.step()

    w, bias, optimizer = make()
    train(w, bias, optimizer, range(4))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    w2, bias2, optimizer2 = make()
    with torch.no_grad():
        w2.copy_(w)
        bias2.copy_(bias)
    optimizer2.load_state_dict(torch.load(file, weights_only=True))
    assert optimizer2.state[w2]["latent"].dtype == torch.float32
    train(w, bias, optimizer, range(4, 8))
    train(w2, bias2, optimizer2, range(4, 8))
    assert torch.equal(w, w2)
    assert torch.equal(bias, bias2)
    copy.deepcopy(optimizer)


@pytest.mark.parametrize(("mode", "rate"), [("fixed", 0.03), ("unit", 0.03), ("learned", 0.1)])
def test_the_former_names_of_the_radius_are_keywords_too(mode, rate):
    weights = [weight(3, 6), weight(3, 6), weight(3, 6)]
    optimizers = [
        LpSGD([weights[0]], radius=mode, radius_lr=rate),
        LpSGD([weights[1]], gain=mode, gain_lr=rate),
        LpSGD([{"params": [weights[2]], "gain": mode, "gain_lr": rate}]),
    ]
    for w, optimizer in zip(weights, optimizers, strict=True):
        (group,) = optimizer.param_groups
        assert (group["radius"], group["radius_lr"]) == (mode, rate)
        assert "gain" not in group
        w.grad = weight(3, 6, seed=1).detach()
        optimizer.step()
    assert all(torch.equal(w, weights[0]) for w in weights)


FORMER = {"radius": "gain", "radius_lr": "gain_lr", "radius_momentum": "gain_momentum",
          "dead_rows": "zero_rows"}  # fmt: skip


def formerly(named):
    return {FORMER.get(name, name): value for name, value in named.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["fixed", "unit", "learned"])
def test_states_with_the_former_names_go_on_bit_for_bit(mode, dtype):
    def make():
        w = torch.nn.Parameter(weight(3, 6, dtype=torch.float32).detach().to(dtype))
        with torch.no_grad():
            w[1] = 0
        return w, LpSGD([w], p=1.2, radius=mode)

    def train(w, optimizer, seeds):
        for seed in seeds:
            w.grad = weight(3, 6, seed=seed, dtype=torch.float32).detach().to(dtype)
            w.grad[1] *= seed > 2
            optimizer.step()

    w, optimizer = make()
    train(w, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"] = {index: formerly(state) for index, state in saved["state"].items()}
    saved["param_groups"] = [formerly(group) for group in saved["param_groups"]]
    assert {"gain", "zero_rows"} < saved["state"][0].keys()
    loaded, other = make()
    with torch.no_grad():
        loaded.copy_(w)
    other.load_state_dict(saved)
    assert other.state[loaded].keys() == optimizer.state[w].keys()
    assert other.param_groups[0].keys() == optimizer.param_groups[0].keys()
    # A pickled optimizer holds its parameters.
    pickled = copy.deepcopy(optimizer)
    (copied,) = pickled.param_groups[0]["params"]
    pickled.state[copied] = formerly(pickled.state[copied])
    pickled.param_groups = [formerly(group) for group in pickled.param_groups]
    pickled.defaults = formerly(pickled.defaults)
    file = io.BytesIO()
    torch.save(pickled, file)
    file.seek(0)
    unpickled = torch.load(file, weights_only=False)
    assert unpickled.defaults == copy.deepcopy(optimizer).defaults
    (again,) = unpickled.param_groups[0]["params"]
    for parameter, each in ((w, optimizer), (loaded, other), (again, unpickled)):
        train(parameter, each, range(2, 5))
        assert torch.equal(parameter, w)
        assert torch.equal(each.state[parameter]["radius"], optimizer.state[w]["radius"])
    assert (w != 0).all()


def test_closure_and_missing_gradients():
    w, unused = weight(2, 3), weight(2, 3)
    optimizer = LpSGD([w, unused], p=1.15)
    before = unused.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert torch.equal(unused, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.01}, "outside"),
        ({"p": 0.1}, "outside"),
        ({"lr": -1}, "lr"),
        ({"eta": 1.5}, "radius"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0}, "Nesterov"),
        ({"dampening": 0.5}, "Nesterov"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"radius": "big"}, "unknown radius"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LpSGD([weight(2, 3)], **options)
