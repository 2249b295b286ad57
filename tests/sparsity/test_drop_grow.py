import pytest
import torch

from lpss_cli.sparsity import drop_grow


def test_the_threshold_decays_along_half_a_cosine():
    at = [drop_grow.cosine_decay(0.2, t, 0.2, 0.8) for t in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert at == pytest.approx([0.2, 0.2, 0.1, 0.0, 0.0])
    assert drop_grow.cosine_decay(0.2, 0.5, 0.5, 0.5) == 0


def test_connections_below_a_fraction_of_their_rows_active_mean_are_selected():
    weight = torch.tensor([[4.0, -1.0, 1.0, 9.0], [0.1, 0.2, 0.3, 0.6], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [False] * 4])
    # Means of the active magnitudes: 2, 0.3, none.
    dropped = drop_grow.below_row_mean(weight, mask, 0.5, (1,))
    assert dropped.tolist() == [
        [False, False, False, False],
        [True, False, False, False],
        [False] * 4,
    ]
    assert drop_grow.below_row_mean(weight, mask, 0.6, (1,)).tolist()[0] == [
        False,
        True,
        True,
        False,
    ]
    assert not drop_grow.below_row_mean(weight, mask, 0.0, (1,)).any()
    assert drop_grow.below_row_mean(weight.T, mask.T, 0.6, (0,)).T[0].tolist() == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_row_is_emptied_by_a_mean_that_was_rounded_up(dtype):
    for n in range(1, 100):
        row = torch.full((1, n), 0.1, dtype=dtype)
        assert not drop_grow.below_row_mean(row, row > 0, 1.0, (1,)).any()


def test_sums_of_half_precision_rows_do_not_overflow():
    row = torch.full((1, 100), 1000.0, dtype=torch.float16)
    assert not drop_grow.below_row_mean(row, row > 0, 0.5, (1,)).any()


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [1]), (2, [1, 3]), (9, [1, 3, 4])])
def test_the_largest_candidates_are_selected_exactly_with_ties_by_position(count, expected):
    scores = torch.tensor([9.0, 5.0, 8.0, 5.0, 1.0])
    candidates = torch.tensor([False, True, False, True, True])
    chosen = drop_grow.top_candidates(scores, candidates, count)
    assert chosen.nonzero().flatten().tolist() == expected


def test_gradients_are_normalized_row_by_row_without_underflow():
    g = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-30, 4e-30]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]])
    torch.testing.assert_close(drop_grow.row_normalized(g, (1,)), expected)


def test_growth_adapts_to_the_target():
    # s = 0.4 of T = 0.8: below T(1 - h/2) = 0.72, so less is grown than dropped.
    assert drop_grow.growth_fraction(0.4, 0.8, 0.2, 0.1) == pytest.approx(0.45)
    assert drop_grow.growth_fraction(0.71, 0.8, 0.2, 0.1) == pytest.approx(0.9 * 0.71 / 0.8)
    assert drop_grow.growth_fraction(0.73, 0.8, 0.2, 0.1) == pytest.approx(1.1 * 0.73 / 0.8)
    assert drop_grow.growth_fraction(0.9, 0.8, 0.0, 0.1) > 1  # past the target it falls again


def test_the_smallest_are_dropped_and_those_of_largest_growth_grown():
    weight = torch.tensor([[3.0, -1.0, 0.0, 0.0], [0.5, 2.0, 0.0, 0.0]])
    mask = weight != 0
    growth = torch.tensor([[9.0, 9.0, 1.0, 4.0], [0.0, 9.0, 2.0, 3.0]])
    # Dropped: 0.5 and -1. Candidates: those two (growth 0 and 9) and the four inactive ones.
    moved = drop_grow.drop_and_grow(weight, mask, 2, growth)
    assert moved.tolist() == [[True, True, False, True], [False, True, False, False]]
    assert torch.equal(drop_grow.drop_and_grow(weight, mask, 0, growth), mask)
    everything = drop_grow.drop_and_grow(weight, mask, 4, growth)
    assert int(everything.sum()) == 4
