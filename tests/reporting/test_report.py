"""Reports against networks small enough to count by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, tensor

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.reporting.layers import measure
from lpss_cli.reporting.report import report

# Rows of four: Hoyer (2 - ‖w‖₁/‖w‖₂)/(2 - 1).
FIRST = tensor([[1.0, 0, 0, 0], [-1, 1, 1, -1], [0, 0, 0, 0], [3, 4, 0, 0]])  # 1, 0, -, 0.6
SECOND = tensor([[0.0, 2], [3, 4]])  # 1, (√2 - 7/5)/(√2 - 1)
STATE = {"a.weight": FIRST, "a.bias": torch.zeros(4), "b.weight": SECOND, "b.bias": torch.ones(2)}
SECOND_HOYER = (1 + (math.sqrt(2) - 1.4) / (math.sqrt(2) - 1)) / 2


def checkpoint(state: dict[str, Tensor], meta: dict | None = None) -> Checkpoint:
    return Checkpoint(Path("nowhere.pt"), state, meta or {})


def test_two_layers_by_hand():
    result = report(checkpoint(STATE))
    a, b = result.layers
    assert (a.name, a.shape, a.weights, a.zeros, a.dead) == ("a.weight", (4, 4), 16, 9, 1)
    assert (b.name, b.shape, b.weights, b.zeros, b.dead) == ("b.weight", (2, 2), 4, 1, 0)
    assert a.sparsity == 9 / 16
    assert a.hoyer == pytest.approx(1.6 / 3)
    assert b.hoyer == pytest.approx(SECOND_HOYER)
    assert (result.weights, result.zeros, result.dead, result.parameters) == (20, 10, 1, 26)
    assert (result.sparsity, result.compression) == (0.5, 2.0)
    assert result.hoyer == pytest.approx((16 * 1.6 / 3 + 4 * SECOND_HOYER) / 20)


def test_a_report_is_json(tmp_path):
    meta = {"weights": {"b.weight": {"p": 1.15, "row_dim": 0}}, "arch": "mlp", "seed": 3}
    artifact.save(tmp_path / "m.pt", STATE, meta)
    result = json.loads(json.dumps(report(tmp_path / "m.pt").to_dict(), allow_nan=False))
    assert result["run"] == {"arch": "mlp", "seed": 3}
    assert result["file_bytes"] == (tmp_path / "m.pt").stat().st_size
    assert (result["prunable"], result["zeros"], result["sparsity"]) == (4, 1, 0.25)
    assert result["compression"] == pytest.approx(4 / 3)
    (layer,) = result["layers"]
    assert (layer["name"], layer["shape"], layer["p"]) == ("b.weight", [2, 2], 1.15)
    assert layer["sparsity"] == 0.25


def test_rows_lie_along_the_artifacts_row_dim():
    facts = {"w": {"row_dim": 1}, "v": {"row_dim": None}, "gone": {}}
    w, v = torch.zeros(3, 2, 2), torch.ones(2, 2)
    w[:, 0] = 1  # of two neurons one is dead
    layers = report(checkpoint({"w": w, "v": v}, {"weights": facts})).layers
    assert [(x.name, x.zeros, x.dead) for x in layers] == [("w", 6, 1), ("v", 0, 0)]


def test_a_fan_in_of_one_has_no_hoyer_but_zeros():
    layer = measure("w", tensor([[2.0], [0.0], [3.0]]))
    assert (layer.hoyer, layer.zeros, layer.dead) == (None, 1, 1)
    result = report(checkpoint({"w": tensor([[2.0], [0.0]]), "b.weight": SECOND}))
    assert result.hoyer == pytest.approx(SECOND_HOYER)  # layers without one do not count


def test_a_network_of_zeros():
    result = report(checkpoint({"w": torch.zeros(3, 4)}))
    assert (result.sparsity, result.compression, result.hoyer) == (1.0, math.inf, None)
    assert result.dead == 3
    assert result.to_dict()["compression"] is None


def test_a_checkpoint_without_prunable_weights():
    result = report(checkpoint({"norm.weight": torch.ones(3)}))
    assert (result.weights, result.sparsity, result.hoyer) == (0, 0.0, None)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_bare_state_dict_skips_norms_embeddings_and_buffers():
    state = {
        "embed.weight": torch.zeros(5, 4),
        "layers.0.norm.weight": torch.zeros(4, 4),
        "pos_embedding": torch.zeros(1, 4),
        "bn.running_mean": torch.zeros(4),
        "table": torch.zeros(4, 4, dtype=torch.long),
        "fc.weight": torch.ones(4, 4),
    }
    result = report(checkpoint(state))
    assert [x.name for x in result.layers] == ["fc.weight"]
    assert (result.zeros, result.parameters) == (0, 20 + 16 + 4 + 4 + 16 + 16)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_diverged_do_not_stop_the_report(bad):
    broken = FIRST.clone()
    broken[1, 0] = bad
    layer = measure("a", broken)
    assert (layer.zeros, layer.dead) == (9, 1)
    assert layer.hoyer == pytest.approx(0.8)  # the rows that have one: 1 and 0.6
    assert measure("a", torch.full((2, 2), bad)).hoyer is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_measured_in_float64(dtype):
    assert measure("a", FIRST.to(dtype)).hoyer == pytest.approx(1.6 / 3, rel=1e-12)


def test_negative_zero_is_zero():
    assert measure("w", tensor([[-0.0, 1.0]])).zeros == 1


def test_survivors_are_counted_in_bins_between_the_smallest_and_the_largest():
    weight = tensor([[0.0, 1.0, 3.0, 0.0], [-1.0, 0.0, 3.0, 0.0]])
    found = measure("w", weight).survivors
    assert (found.low, found.high, sum(found.counts)) == (-1.0, 3.0, 4)
    assert (found.counts[0], found.counts[20], found.counts[-1]) == (1, 1, 2)
    assert found.centroids == (pytest.approx(7 / 3), -1.0)
    assert measure("w", tensor([[0.0, 2.0]])).survivors.centroids == (2.0, None)
    assert sum(measure("w", tensor([[0.0, 2.0, 2.0]])).survivors.counts) == 2
    assert measure("w", tensor([[0.0, 0.0]])).survivors is None
