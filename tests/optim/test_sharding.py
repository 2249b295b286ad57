"""LpSGD on rows that are spread over processes: as on one process."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from teams import together
from torch import nn

from lpss_cli import LpSGD
from lpss_cli.distributed.context import joined
from lpss_cli.errors import InputError, RunError
from lpss_cli.optim.sharding import check_rows, is_sharded, local, top_k

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch was built without gloo",
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "fully_sharded.py"
# 7 rows: two processes hold 4 and 3 of them. 1 row: one of them holds none.
WIDTHS = (12, 7, 5, 1)


def network():
    torch.manual_seed(0)
    layers = [m for a, b in pairwise(WIDTHS) for m in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        model[0].weight[5] = 0.0  # a row without a direction, on the second process
    return model


def steps(model, options, count=6):
    optimizer = LpSGD(model.parameters(), lr=0.1, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, y = (torch.randn(16, n, generator=generator).double() for n in (WIDTHS[0], WIDTHS[-1]))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return optimizer


def sharded_network():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def on_shards(cases):
    found = []
    with joined("cpu"):
        for options in cases:
            model = sharded_network()
            optimizer = steps(model, options)
            weights = {n: p.full_tensor().detach() for n, p in model.named_parameters()}
            state = {
                (n, key): value.full_tensor()
                for n, p in model.named_parameters()
                for key, value in optimizer.state[p].items()
                if is_sharded(value)
            }
            kept = {n: tuple(local(p).shape) for n, p in model.named_parameters()}
            found.append((weights, state, kept))
    return found


def same(found, wanted, where):
    """Equal but for the rounding of matrix products whose operands lie elsewhere in memory."""
    assert found.shape == wanted.shape, where
    assert torch.allclose(found, wanted.detach(), rtol=1e-9, atol=1e-12), where


CASES = [
    {"p": 1.2},
    {"p": 0.5},
    {"p": 1.07, "radius": "unit"},
    {"p": 1.2, "fused": False, "weight_decay": 0.01},
    {"p": None},
]


def test_shards_take_the_steps_of_the_whole():
    both = together(on_shards, CASES)
    for i, options in enumerate(CASES):
        model = network()
        optimizer = steps(model, options)
        for found in both:
            weights, state, _ = found[i]
            for name, weight in model.named_parameters():
                same(weights[name], weight, (options, name))
                for key, value in optimizer.state[weight].items():
                    if key != "dead_rows":  # of each process's own rows
                        same(state[name, key], value, (options, name, key))
    shapes = [found[0][2]["0.weight"] for found in both]
    assert shapes == [(4, 12), (3, 12)]
    assert [found[0][2]["4.weight"] for found in both] == [(1, 5), (0, 5)]


def saved_and_loaded():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    with joined("cpu"):
        straight = sharded_network()
        steps(straight, {"p": 1.2}, 3)
        optimizer = steps(straight, {"p": 1.2}, 3)
        state = get_optimizer_state_dict(straight, optimizer)
        other = LpSGD(straight.parameters(), lr=0.1, p=1.2)
        set_optimizer_state_dict(straight, other, state)
        return all(
            torch.equal(local(optimizer.state[p][key]), local(other.state[p][key]))
            for p in straight.parameters()
            for key in optimizer.state[p]
        )


def test_pytorchs_distributed_checkpoints_hold_the_state():
    assert together(saved_and_loaded) == [True, True]


def columns():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    with joined("cpu"):
        mesh = init_device_mesh("cpu", (2,))
        weight = nn.Parameter(distribute_tensor(torch.ones(4, 6), mesh, [Shard(1)]))
        check_rows(weight, 1)
        optimizer = LpSGD([weight], lr=0.1, p=1.2)
        weight.grad = torch.ones_like(weight)
        optimizer.step()


def test_rows_in_pieces_are_refused():
    for error in together(columns):
        assert isinstance(error, InputError)
        assert "the rows of a weight of shape (4, 6) are spread over processes" in error.what


def ranked(cases, k):
    with joined("cpu") as distributed:
        return [top_k(parts[distributed.rank], k) for parts in cases]


def special():
    """Scores with ties, zeros of both signs, infinities and all sizes, on three processes."""
    generator = torch.Generator().manual_seed(0)
    random = [
        {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(rank, generator=generator)}
        for rank in range(3)
    ]
    ties = [{"a": torch.tensor([1.0, -0.5, 1.0])} for _ in range(3)]
    extremes = [
        {"a": torch.tensor([float("-inf"), 0.0, 1e-45, -1e-45, 3e38, float("inf")])}
        for _ in range(3)
    ]
    return [random, ties, extremes]


@pytest.mark.parametrize("k", [0, 1, 4, 9, 100])
def test_a_global_choice_over_processes_is_exact(k):
    cases = special()
    results = together(ranked, cases, k, size=3)
    for index, parts in enumerate(cases):
        scores = torch.cat([s.flatten() for part in parts for s in part.values()])
        masks = [results[rank][index] for rank in range(3)]
        kept = torch.cat([m.flatten() for mask in masks for m in mask.values()])
        assert int(kept.sum()) == min(k, len(scores))
        if kept.any() and not kept.all():
            assert scores[kept].min() >= scores[~kept].max()
        for mask, part in zip(masks, parts, strict=True):
            assert {n: m.shape for n, m in mask.items()} == {n: s.shape for n, s in part.items()}
    if k == 4:  # of the six that are equal, those of lower ranks
        assert [int(results[rank][1]["a"].sum()) for rank in range(3)] == [2, 2, 0]


def unordered():
    with joined("cpu") as distributed:
        return top_k({"a": torch.tensor([1.0, float("nan") if distributed.rank else 2.0])}, 1)


def test_scores_that_are_no_numbers_are_refused_everywhere():
    assert [type(error) for error in together(unordered)] == [RunError, RunError]


def example():
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return said.getvalue()


def test_the_example_cuts_exactly():
    first, second = together(example)
    found = re.fullmatch(r"45,180 of 50,200 weights are zero, accuracy (\d+\.\d)%\n", first)
    assert found is not None, first
    assert float(found[1]) > 80
    assert second == ""
