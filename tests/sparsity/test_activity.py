"""Weights without a gradient rank last."""

import pytest
import torch
from helpers import blobs
from torch import nn

from lpss_cli.methods.gmp import GMP
from lpss_cli.sparsity.activity import Activity
from lpss_cli.sparsity.masks import RANK_OFFSET, RANKINGS, select_masks
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


def _seen(*gradients):
    activity = Activity()
    weight = nn.Parameter(torch.ones(3, 4))
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        activity.update({"w": weight})
    return activity


def test_rows_and_columns_without_any_gradient_are_inactive():
    first = [[0.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0]]
    second = [[0.0, 0, 0, 2e-30], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = torch.arange(12.0).view(3, 4)
    one = _seen(first).demote({"w": scores})["w"]
    both = _seen(first, second).demote({"w": scores})["w"]
    used = torch.zeros(3, 4, dtype=torch.bool)
    used[1, 1] = True
    assert torch.equal(one, torch.where(used, scores, scores - RANK_OFFSET))
    used[:2, 1] = used[:2, 3] = True
    assert torch.equal(both, torch.where(used, scores, scores - RANK_OFFSET))


def test_convolutions_count_by_output_and_input_channels():
    activity, weight = Activity(), nn.Parameter(torch.ones(2, 3, 5, 5))
    weight.grad = torch.zeros(2, 3, 5, 5)
    weight.grad[1, 2, 4, 0] = 1e-20
    activity.update({"w": weight})
    inactive = activity.demote({"w": torch.zeros(2, 3, 5, 5)})["w"] < 0
    assert not inactive[1, 2].any()
    assert inactive.sum() == 5 * 25


def test_scores_of_weights_that_were_not_examined_stay():
    activity = Activity()
    activity.update({"w": nn.Parameter(torch.ones(2, 2))})  # no gradient yet: nothing is known
    scores = {"w": torch.rand(2, 2)}
    assert torch.equal(activity.demote(scores)["w"], scores["w"])
    seen = _seen([[0.0] * 4] * 3)
    seen.reset()
    assert torch.equal(seen.demote({"w": torch.zeros(3, 4)})["w"], torch.zeros(3, 4))


@pytest.mark.parametrize("ranking", ["lamp", "magnitude", "uniform", "erk", "balanced"])
def test_inactive_weights_are_pruned_first_in_their_own_order_and_counts_stay_exact(ranking):
    gradient = [[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    scores = {"w": torch.randn(3, 4).sub(torch.tensor([[-50.0], [0], [0]]))}  # row 0 is largest
    demoted = _seen(gradient).demote(scores)
    for k in range(13):
        mask = select_masks(demoted, k, ranking)["w"]
        assert mask.sum() == k
        assert int(mask[0].sum()) == max(0, k - 8)
        if k > 8:
            kept = scores["w"][0][mask[0]].min()
            assert not (scores["w"][0][~mask[0]] > kept).any()


@pytest.mark.parametrize("ranking", list(RANKINGS))
def test_a_neuron_that_nothing_reads_loses_its_weights(ranking):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight[:, :3] = 0  # zeros of a checkpoint stay
        model[0].weight[:3] = 5.0  # larger than any other
    done = Trainer(
        model, blobs(n=256), GMP(GMP.Config(ranking=ranking, frequency=5)),
        TrainingSettings(4, 32, sparsity=0.5, keep_zeros=True),
    ).train()  # fmt: skip
    assert done.masked == 64
    assert not done.masks["0.weight"][:3].any()
    assert done.masks["0.weight"][3:].any(1).all()
