"""Exact selection: counts, selections by hand, and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.lamp_reference import lamp_scores
from torch import Tensor, tensor

from lpss_cli.errors import InputError, RunError
from lpss_cli.sparsity.masks import RANKINGS, allocate, log_magnitude, select_masks, top_k
from lpss_cli.sparsity.targets import check_sparsity, zero_count

# Few distinct magnitudes: nearly every draw has ties, and every draw may have zeros.
MAGNITUDES = st.sampled_from([0.0, 0.0, 1e-30, 0.5, 1.0, 1.0, 2.0])


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Tensor]:
    shapes = draw(
        st.lists(
            st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
        )
    )
    layers = {}
    for i, shape in enumerate(shapes):
        n = math.prod(shape)
        values = draw(st.lists(MAGNITUDES, min_size=n, max_size=n))
        layers[f"layer{i}"] = tensor(values).view(shape).log()
    return layers


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())


def alive(scores: dict[str, Tensor]) -> int:
    return sum(int(s.isfinite().sum()) for s in scores.values())


@pytest.mark.parametrize("ranking", RANKINGS)
@given(scores=networks(), part=st.floats(0, 1))
def test_every_ranking_keeps_exactly_k_nonzero_weights(ranking, scores, part):
    k = round(part * sum(s.numel() for s in scores.values()))
    before = {name: s.clone() for name, s in scores.items()}
    masks = select_masks(scores, k, ranking)
    assert kept(masks) == min(k, alive(scores))
    assert list(masks) == list(scores)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == scores[name].shape
        assert not mask[scores[name].isneginf()].any()
        assert torch.equal(scores[name], before[name])
    again = select_masks(scores, k, ranking)
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


@given(scores=networks(), data=st.data())
def test_top_k_keeps_nothing_smaller_than_what_it_drops(scores, data):
    k = data.draw(st.integers(0, alive(scores)))
    masks = top_k(scores, k)
    flat = torch.cat([s.flatten() for s in scores.values()])
    keep = torch.cat([m.flatten() for m in masks.values()])
    if 0 < k < len(flat):
        assert flat[keep].min() >= flat[~keep].max()


def test_ties_go_to_the_first_positions_of_the_first_layers():
    scores = {"a": tensor([[1.0, 0.0], [0.0, 2.0]]), "b": tensor([0.0, 0.0, 3.0])}
    masks = top_k(scores, 5)  # 3, 2, 1 and two of the four zeros
    assert masks["a"].tolist() == [[True, True], [True, True]]
    assert masks["b"].tolist() == [False, False, True]


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_cannot_be_ranked_stop_the_run(ranking, bad):
    with pytest.raises(RunError, match="NaN or infinite"):
        select_masks({"a": tensor([0.0, bad])}, 1, ranking)


def test_lamp_scores_by_hand():
    # w = 1, 2, 3 -> 1/(1+4+9), 4/(4+9), 9/9; the zero stays out.
    lamp = lamp_scores({"a": tensor([2.0, -1.0, 0.0, 3.0]).abs().log()})["a"]
    expected = tensor([4 / 13, 1 / 14, 0.0, 1.0], dtype=torch.float64).log()
    torch.testing.assert_close(lamp, expected, rtol=1e-6, atol=1e-7)


def test_lamp_equals_its_definition_in_float64():
    w = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = w.square().flatten().tolist()
    literal = [math.log(x / sum(y for y in squares if y >= x)) for x in squares]
    lamp = lamp_scores({"a": w.abs().log()})["a"].flatten().tolist()
    assert lamp == pytest.approx(literal, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_rank_as_their_values_do(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(50, 40, generator=generator).to(dtype),
        "b": torch.randn(30, 50, generator=generator).mul(0.3).to(dtype),
    }
    exact = {name: w.double().abs().log() for name, w in weights.items()}
    scores = {name: log_magnitude(w) for name, w in weights.items()}
    for layers in (exact, scores):
        layers["a"][0] -= 1000.0  # far behind, but not zero
    literal = torch.cat([s.flatten() for s in lamp_scores(exact).values()])
    for k in (350, 3490):
        masks = select_masks(scores, k, "lamp")
        assert kept(masks) == k
        keep = torch.cat([m.flatten() for m in masks.values()])
        assert literal[keep].min() >= literal[~keep].max() - 1e-9


def test_lamp_ranks_weights_whose_squares_underflow():
    lamp = lamp_scores({"a": tensor([-2000.0, -1000.0, -3000.0])})["a"]
    assert lamp.tolist() == [-2000.0, 0.0, -4000.0]


@given(scores=networks(), data=st.data())
def test_lamp_empties_no_layer_before_every_layer_is_down_to_one(scores, data):
    living = [name for name, s in scores.items() if s.isfinite().any()]
    k = data.draw(st.integers(len(living), max(len(living), alive(scores))))
    masks = select_masks(scores, k, "lamp")
    assert all(masks[name].any() for name in living)


def test_magnitude_is_one_ranking_over_all_layers():
    scores = {"a": tensor([1.0, 2.0, 3.0]).log(), "b": tensor([10.0, 20.0, 30.0]).log()}
    masks = select_masks(scores, 4, "magnitude")
    assert masks["a"].tolist() == [False, False, True]
    assert masks["b"].all()


def test_uniform_gives_every_layer_the_same_density():
    scores = {"a": torch.arange(40.0), "b": torch.arange(100.0, 120.0)}
    masks = select_masks(scores, 30, "uniform")
    assert [int(m.sum()) for m in masks.values()] == [20, 10]
    assert masks["a"][20:].all()


def test_erk_densities_are_proportional_to_sum_of_dims_over_their_product():
    # Kept = c·(Σdims): 60·c, 24·c, 16·c. For k = 50 of 1100: c = 1/2.
    scores = {"a": torch.rand(50, 10), "b": torch.rand(4, 4, 8, 4, 4), "c": torch.rand(8, 8)}
    assert [sum(s.shape) for s in scores.values()] == [60, 24, 16]
    masks = select_masks(scores, 50, "erk")
    assert [int(m.sum()) for m in masks.values()] == [30, 12, 8]


def test_erk_keeps_small_layers_dense_and_shares_out_the_rest():
    # Shares 4 : 20 : 20 of 44 would give the first 6.2 of its 4; 64 are left for two equals.
    scores = {"a": torch.rand(2, 2), "b": torch.rand(10, 10), "c": torch.rand(10, 10)}
    assert [int(m.sum()) for m in select_masks(scores, 68, "erk").values()] == [4, 32, 32]


@given(
    layers=st.lists(st.tuples(st.floats(1e-3, 1e4), st.integers(0, 50)), min_size=1, max_size=8),
    part=st.floats(0, 1.2),
)
def test_allocation_is_exact_and_respects_capacity(layers, part):
    shares, capacity = zip(*layers, strict=True)
    k = round(part * sum(capacity))
    parts = allocate(k, shares, capacity)
    assert sum(parts) == min(k, sum(capacity))
    assert all(0 <= p <= c for p, c in zip(parts, capacity, strict=True))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.integers(0, 1000))
def test_allocation_is_within_one_of_proportional_where_nothing_is_full(shares, k):
    parts = allocate(k, shares, [10**6] * len(shares))
    assert all(abs(p - k * s / sum(shares)) < 1 + 1e-6 for p, s in zip(parts, shares, strict=True))


@pytest.mark.parametrize(
    ("k", "shares", "capacity", "expected"),
    [
        (6, [1, 2, 3], [9, 9, 9], [1, 2, 3]),
        (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),  # equal remainders: the first
        (10, [1, 1, 1], [9, 2, 9], [4, 2, 4]),  # the full layer's part goes to the others
        (10, [5, 4, 1], [3, 9, 9], [3, 6, 1]),  # 7 left as 4 : 1 is 5.6 and 1.4
        (99, [1, 1], [3, 4], [3, 4]),
        (5, [1, 1], [0, 9], [0, 5]),
        (0, [1, 1], [3, 4], [0, 0]),
    ],
)
def test_allocation_by_hand(k, shares, capacity, expected):
    assert allocate(k, shares, capacity) == expected


@pytest.mark.parametrize(
    ("total", "sparsity", "zeros"), [(10, 0.9, 9), (7, 0.5, 4), (1000, 0.999, 999), (3, 0, 0)]
)
def test_zero_count_is_the_rounded_product(total, sparsity, zeros):
    assert zero_count(total, sparsity) == zeros


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_sparsity_outside_its_range_is_refused(bad):
    with pytest.raises(InputError, match="outside"):
        check_sparsity(bad)


def test_sparsity_that_leaves_no_weight_is_refused_and_the_largest_one_is_named():
    assert check_sparsity(0.9, 10) == 0.9
    with pytest.raises(InputError, match="leaves none of the 10") as error:
        check_sparsity(0.99, 10)  # round(9.9) = 10
    assert "at most 0.9," in error.value.do


@pytest.mark.parametrize("ranking", list(RANKINGS))
def test_layers_without_weights_or_without_any_left_keep_nothing(ranking):
    scores = {
        "empty": torch.zeros(0, 4),
        "gone": torch.full((2, 2), -torch.inf),
        "full": torch.randn(3, 4),
    }
    masks = select_masks(scores, 5, ranking)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "empty": 0,
        "gone": 0,
        "full": 5,
    }
