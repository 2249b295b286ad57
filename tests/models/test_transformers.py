"""Attention is pruned like any layer: its rows are the neurons of queries, keys and values."""

import json
from pathlib import Path

import pytest
import torch
from helpers import blobs
from reference.lamp_reference import lamp_scores
from torch import nn

from lpss_cli.sparsity.hoyer_prediction import suitable_p
from lpss_cli.sparsity.lp_geometry import lp_norm
from lpss_cli.sparsity.prunable import prunable_weights
from lpss_cli.training import method
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

EXAMPLES = Path(__file__).parents[2] / "examples"


class Attending(nn.Module):
    """Attention over the twelve numbers of an example, as three words of four."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        words = x.unflatten(1, (3, 4))
        return self.head(self.attention(words, words, words, need_weights=False)[0].flatten(1))


def test_the_weights_of_attention_and_their_rows():
    found = prunable_weights(Attending())
    assert {name: (tuple(w.tensor.shape), w.fan_in) for name, w in found.items()} == {
        "attention.in_proj_weight": ((12, 4), 4),  # four neurons each of queries, keys, values
        "attention.out_proj.weight": ((4, 4), 4),
        "head.weight": ((4, 12), 12),
    }
    # Keys and values of another width have matrices of their own, with fan-ins of their own.
    other = prunable_weights(nn.MultiheadAttention(4, 2, kdim=6, vdim=10))
    assert {name: w.fan_in for name, w in other.items()} == {
        "q_proj_weight": 4,
        "k_proj_weight": 6,
        "v_proj_weight": 10,
        "out_proj.weight": 4,
    }


def test_every_neuron_of_attention_moves_on_a_sphere_of_its_own():
    torch.manual_seed(0)
    model = Attending()
    start = model.attention.in_proj_weight.detach().clone()
    lpss = method.make("lpss", {"p": ("1.5",), "radius": "fixed"})
    run = Trainer(model, blobs(), lpss, TrainingSettings(3, 16)).train()
    after = model.attention.in_proj_weight.detach()
    assert run.layer_info["attention.in_proj_weight"]["p"] == 1.5
    # The norm that a row began with is kept, row by row, and the rows have moved.
    torch.testing.assert_close(
        lp_norm(after, 1.5, (1,)), lp_norm(start, 1.5, (1,)), rtol=1e-5, atol=0
    )
    assert bool(((after - start).abs().amax(1) > 1e-3).all())


def test_attention_shares_the_budget_by_the_ranking():
    torch.manual_seed(0)
    model = Attending()
    weights = {name: w.tensor.detach().clone() for name, w in prunable_weights(model).items()}
    run = Trainer(model, blobs(), method.make("gmp"), TrainingSettings(0, 16, sparsity=0.5)).train()
    flat = torch.cat([s.flatten() for s in lamp_scores(
        {name: w.abs().log() for name, w in weights.items()}).values()])  # fmt: skip
    best = flat >= flat.sort(descending=True).values[112 // 2 - 1]
    assert torch.equal(torch.cat([m.flatten() for m in run.masks.values()]), best)
    assert run.masked == 56


@pytest.fixture
def lpss_json(lpss):
    """Run the command line; returns its document and what it said."""

    def run(*args):
        code, out, err = lpss(*args, "--json")
        assert code == 0, err
        return json.loads(out), err

    return run


def sparse_and_exported(lpss_json, network, data, train, sparsify):
    """Train, sparsify, report and export an example; return what the commands printed."""
    lpss_json("train", *network, *data, *train)
    outcome, _ = lpss_json("sparsify", "model.pt", *network, *data, *sparsify)
    report, _ = lpss_json("report")
    written, _ = lpss_json("export", *network, *data, "--no-latency", "--format", "onnx")
    assert report["zeros"] == outcome["report"]["zeros"]
    onnx = next(item for item in written["files"] if item["kind"] == "onnx")
    assert "real inputs through onnxruntime" in onnx["checked"]
    return outcome, report


def test_a_language_model_becomes_sparse_and_still_reads(lpss_json):
    example = EXAMPLES / "language_model.py"
    outcome, report = sparse_and_exported(
        lpss_json,
        ("--arch", f"{example}:network"),
        ("--data", f"{example}:sentences"),
        ("--epochs", "4"),
        ("--epochs", "2"),
    )
    assert report["zeros"] == round(0.9 * report["prunable"])
    # All four words that follow from the first sentence are copied; chance is 1 in 8 for each.
    assert outcome["after"]["accuracy"] > 0.98
    assert outcome["after"]["whole_texts"] > 0.9
    layers = {layer["name"]: layer for layer in report["layers"]}
    attention = layers["blocks.layers.1.self_attn.in_proj_weight"]
    assert attention["shape"] == [192, 64]
    assert 0.5 < attention["sparsity"] < 1
    assert attention["p"] == suitable_p(64, 0.9)


def test_a_vision_transformer_of_torchvision(lpss_json):
    outcome, report = sparse_and_exported(
        lpss_json,
        ("--arch", f"{EXAMPLES / 'vision_transformer.py'}:tiny"),
        (),
        ("--epochs", "12"),
        ("--epochs", "6", "--sparsity", "0.8", "--skip", "*.conv_proj"),
    )
    assert report["zeros"] == round(0.8 * report["prunable"])
    assert outcome["after"]["accuracy"] > 0.9
    names = [layer["name"] for layer in report["layers"]]
    assert sum(name.endswith("in_proj_weight") for name in names) == 3
