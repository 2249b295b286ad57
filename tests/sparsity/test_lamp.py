"""Selection by LAMP scores without a full sort equals selection by sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.lamp_reference import lamp_scores
from torch import Tensor, tensor

from lpss_cli.sparsity.lamp import lamp_masks
from lpss_cli.sparsity.masks import top_k

SHAPES = {"a": (300, 40), "b": (64, 16, 3, 3), "c": (10, 100), "d": (7,)}


def drawn(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """Return layers with every kind of magnitudes that training produces."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        normal = torch.randn(shape, generator=generator)
        scores[name] = {
            "normal": normal.abs().log() - i,
            "float64": normal.double().abs().log() + i,
            "faded": 40 * normal,  # a latent's high power: over 150 in the logarithm
            "rounded": (normal * 4).round().div(4).abs().log(),  # ties and zeros
            "equal": torch.full(shape, -1.5),
            "one large": normal.abs().log() - 300 * (torch.arange(normal.numel()) > 0).view(shape),
            "far below": normal.abs().log() - 1000 * i,
            "pruned": normal.abs().log().masked_fill(normal.abs() < 1.5, -math.inf),
        }[kind]
    return scores


KINDS = ["normal", "float64", "faded", "rounded", "equal", "one large", "far below", "pruned"]


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_equal_those_of_the_sorted_scores(kind, part):
    scores = drawn(kind)
    k = round(part * sum(s.numel() for s in scores.values()))
    expected, found = top_k(lamp_scores(scores), k), lamp_masks(scores, k)
    assert list(found) == list(expected)
    alive = sum(int(s.isfinite().sum()) for s in scores.values())
    assert sum(int(m.sum()) for m in found.values()) == min(k, alive)
    if kind in ("rounded", "equal"):  # equal scores of different layers, but for rounding
        return
    for name, mask in expected.items():
        assert torch.equal(found[name], mask)


@pytest.mark.parametrize("kind", ["rounded", "equal"])
def test_of_equal_weights_the_first_are_kept(kind):
    scores = {"a": drawn(kind)["a"]}
    for k in (1, 17, 4000, 9000):
        assert torch.equal(lamp_masks(scores, k)["a"], top_k(lamp_scores(scores), k)["a"])


def test_by_hand():
    # Scores 1/14, 4/13, 9/9 and 1/17, 16/16: the fourth largest is the 1/14.
    scores = {"a": tensor([1.0, 2.0, 3.0]).log(), "b": tensor([[4.0], [1.0]]).log()}
    assert lamp_masks(scores, 2)["a"].tolist() == [False, False, True]
    assert lamp_masks(scores, 3)["a"].tolist() == [False, True, True]
    assert lamp_masks(scores, 4)["a"].all()
    assert lamp_masks(scores, 4)["b"].tolist() == [[True], [False]]


MAGNITUDES = st.sampled_from([0.0, 1e-30, 0.5, 0.5001, 1.0, 1.0, 2.0])
LAYERS = st.lists(st.lists(MAGNITUDES, min_size=1, max_size=12), min_size=1, max_size=4)


@given(layers=LAYERS, data=st.data())
def test_no_kept_weight_scores_less_than_a_pruned_one(layers, data):
    scores = {str(i): tensor(values).log() for i, values in enumerate(layers)}
    reference = lamp_scores(scores)
    alive = sum(int(s.isfinite().sum()) for s in scores.values())
    k = data.draw(st.integers(0, alive))
    masks = lamp_masks(scores, k)
    keep = torch.cat([m.flatten() for m in masks.values()])
    flat = torch.cat([s.flatten() for s in reference.values()])
    assert int(keep.sum()) == k
    if 0 < k < alive:
        assert flat[keep].min() >= flat[~keep].max() - 1e-12


def test_a_layer_without_weights_to_keep_is_left_out():
    dead = {"dead": torch.full((3,), -math.inf), "alive": tensor([0.0, -1.0])}
    assert not lamp_masks(dead, 5)["dead"].any()
    assert lamp_masks(dead, 5)["alive"].all()
    assert not lamp_masks({"dead": dead["dead"]}, 2)["dead"].any()
