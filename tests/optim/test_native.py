"""The compiled step: where it is taken, how it is built, and that it equals the other one."""

from __future__ import annotations

import copy
import stat
import sys

import numpy as np
import pytest
import torch
from reference.lpsgd_reference import DualRow, PowerRow

from lpss_cli.errors import InputError
from lpss_cli.optim import native
from lpss_cli.optim.lpsgd import LpSGD
from lpss_cli.optim.native import kernel

EVERY_P = [0.2, 0.5, 0.7, 0.8, 1.0, 1.05, 1.0714, 1.15, 1.2, 1.3, 1.5, 2.0, 2.7, 4.0]

needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")


def weight(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype))


def masked_gradient(w, seed):
    """A gradient with a dead row, a sparse row and exact zeros, as masks leave it."""
    g = weight(*w.shape, seed=100 + seed).detach()
    g[1] = 0
    g[2].flatten()[: g[2].numel() // 2] = 0
    return g.to(w.dtype)


@needs_compiler
@pytest.mark.parametrize("p", EVERY_P)
def test_fp32_rows_longer_than_a_block_follow_the_float64_reference(p):
    w = weight(2, 1300)
    exact = 15 / 14 if p == 1.0714 else p
    start = w.detach().double().numpy()
    rows = [(DualRow if p > 1 else PowerRow)(row, exact, "learned") for row in start]
    optimizer = LpSGD([w], p=p, eta=0.02, radius_lr=0.01, fused=True)
    rng = np.random.default_rng(0)
    for _ in range(10):
        g = rng.standard_normal((2, 1300)).astype(np.float32)
        w.grad = torch.from_numpy(g)
        optimizer.step()
        for row, row_g in zip(rows, g.astype(np.float64), strict=True):
            row.step(row_g, eta=0.02, mu=0.9, dampening=0.0, nesterov=True, radius_lr=0.01)
    expected = np.stack([row.w() for row in rows])
    # The weight is a power of the latent, whose rounding errors grow by the exponent.
    exponent = 1 / (exact - 1) if p > 1 else 2 / p
    tolerance = 2e-6 * max(1.0, exponent)
    scale = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(w.detach().numpy() - expected) / scale).max() < tolerance


@needs_compiler
@pytest.mark.parametrize("mode", ["fixed", "learned", "unit"])
@pytest.mark.parametrize("p", EVERY_P)
def test_both_paths_agree_with_rows_of_zeros_and_masks(p, mode):
    start = weight(5, 40, 3, 3)
    with torch.no_grad():
        start[3:] = 0
        start[4, 7, 1, 1] = -0.0
    twins = [torch.nn.Parameter(start.detach().clone()) for _ in range(2)]
    optimizers = [
        LpSGD([w], p=p, radius=mode, fused=f) for w, f in zip(twins, (True, False), strict=True)
    ]
    for seed in range(8):
        for w, optimizer in zip(twins, optimizers, strict=True):
            w.grad = masked_gradient(w, seed)
            w.grad[4] *= seed > 3  # this row of zeros waits
            optimizer.step()
        compiled, plain = (o.state[w] for o, w in zip(optimizers, twins, strict=True))
        pairs = [(compiled[key], plain[key]) for key in ("latent", "momentum_buffer", "radius")]
        for one, other in [*pairs, twins]:
            scale = float(other.detach().abs().max())
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * scale)
        assert bool((twins[0][4] == 0).all()) == (seed <= 3)
    assert (twins[0] != 0).all()


@needs_compiler
@pytest.mark.parametrize("p", [0.5, 1.15])
def test_the_same_bits_on_any_number_of_threads(p, monkeypatch):
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        w = weight(7, 10_000)
        optimizer = LpSGD([w], p=p, fused=True)
        for seed in range(3):
            w.grad = masked_gradient(w, seed)
            optimizer.step()
        results.append(w.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_compiler
def test_what_takes_the_compiled_step_and_what_does_not(monkeypatch):
    taken = []
    step = native.step
    monkeypatch.setattr(native, "step", lambda rows, rule: (taken.append(rows), step(rows, rule)))

    def compiled(w, g=None, **options):
        taken.clear()
        optimizer = LpSGD([w], p=1.15, **options)
        w.grad = torch.randn(w.shape).to(w.dtype) if g is None else g
        optimizer.step()
        return bool(taken)

    last = torch.channels_last
    image = torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=last))
    assert compiled(weight(4, 6))
    assert compiled(weight(4, 6), fused=True)
    assert compiled(weight(4, 6, 2, 2, 2))
    assert compiled(weight(4, 6, dtype=torch.float64))
    assert compiled(image, torch.randn(4, 3, 5, 5).to(memory_format=last))
    assert compiled(weight(4, 3, 1, 1), torch.randn(4, 3, 1, 1).to(memory_format=last))
    assert not compiled(weight(4, 6), fused=False)
    assert not compiled(weight(4, 6), torch.randn(6, 4).T)
    assert not compiled(weight(4, 3, 5, 5), torch.randn(4, 3, 5, 5).to(memory_format=last))
    assert not compiled(weight(6, 4, 3, 3), row_dim=1)
    assert not compiled(weight(4, 6, dtype=torch.bfloat16))
    assert not compiled(torch.nn.Parameter(torch.randn(6, 4).T))
    assert not compiled(weight(4, 6), torch.randn(4, 6, dtype=torch.complex64).conj().imag)
    assert not compiled(weight(0, 6))  # there is nothing to do


@needs_compiler
def test_autograd_notices_that_the_weight_was_replaced():
    w = weight(3, 4)
    loss = (w * w).sum()
    w.grad = torch.randn(3, 4)
    LpSGD([w], p=1.15, fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_copies_and_saved_states_keep_the_choice():
    w = weight(3, 4)
    optimizer = LpSGD([w], p=1.15, fused=False)
    assert copy.deepcopy(optimizer).param_groups[0]["fused"] is False
    older = optimizer.state_dict()
    for group in older["param_groups"]:
        del group["fused"]
    optimizer.load_state_dict(older)
    w.grad = torch.randn(3, 4)
    optimizer.step()  # of a state that knew no choice


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Look for the compiler anew, with a cache of one's own; what it holds need not be fast."""
    quick = tuple("-O0" if flag == "-O3" else flag for flag in kernel._FLAGS)
    monkeypatch.setattr(kernel, "_FLAGS", quick)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for function in (kernel.library, kernel.compiler, kernel._find_compiler):
        function.cache_clear()
    yield tmp_path / "cache" / "lpss"
    for function in (kernel.library, kernel.compiler, kernel._find_compiler):
        function.cache_clear()


def program(path, text):
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_switch_turns_it_off(fresh, monkeypatch):
    monkeypatch.setenv(kernel.SWITCH, "0")
    assert native.library() is None
    assert native.compiler() is None
    w = weight(3, 4)
    w.grad = torch.randn(3, 4)
    LpSGD([w], p=1.15).step()
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        LpSGD([w], p=1.15, fused=True)


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(1)",
        "import sys; print('x') if '-dM' in sys.argv else sys.exit(1)",
        "import sys; print('x')  # and writes nothing",
    ],
)
def test_a_compiler_that_fails_is_as_good_as_none(fresh, monkeypatch, tmp_path, text):
    monkeypatch.setattr(kernel, "_COMPILERS", ())
    monkeypatch.setenv("CXX", program(tmp_path / "broken", text))
    assert native.library() is None
    assert list(fresh.glob("*")) == []


def test_no_compiler_at_all(fresh, monkeypatch):
    monkeypatch.setattr(kernel, "_COMPILERS", ("no-such-compiler",))
    monkeypatch.setenv("CXX", "")
    assert native.library() is None


@needs_compiler
def test_what_was_built_is_kept_and_a_damaged_one_replaced(fresh, monkeypatch, tmp_path):
    assert native.library() is not None
    (kept,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    built = kept.stat().st_mtime_ns
    kernel.library.cache_clear()
    assert native.library() is not None
    assert kept.stat().st_mtime_ns == built
    # In another place: a process never loads a path twice.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    damaged = tmp_path / "other" / "lpss" / kept.name
    damaged.parent.mkdir(mode=0o700, parents=True)
    damaged.write_bytes(b"no library")
    kernel.library.cache_clear()
    assert native.library() is not None
    assert damaged.stat().st_size == kept.stat().st_size


@needs_compiler
@pytest.mark.parametrize("how", ["others may write it", "it is a file"])
def test_a_cache_that_cannot_be_trusted_is_not_used(fresh, how):
    fresh.parent.mkdir()
    if how == "it is a file":
        fresh.touch()
    else:
        fresh.mkdir()
        fresh.chmod(0o777)
    assert native.library() is not None
    assert not fresh.is_dir() or list(fresh.iterdir()) == []
