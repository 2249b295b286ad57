"""What reaches no output becomes zero, and the outputs stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lpss_cli.checkpoints.loading import read
from lpss_cli.export.compaction.compact import TOLERANCE, redundant_weights
from lpss_cli.export.options import ExportOptions, OnnxOptions
from lpss_cli.jobs import evaluate, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.export import export_file
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.models import build
from lpss_cli.reporting.report import report
from lpss_cli.sparsity.prunable import prunable_weights


def _dense(weights, biases):
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
        layer.bias.data = torch.tensor(bias, dtype=torch.float32)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_constants_move_into_the_next_bias_and_what_is_unread_becomes_zero():
    # Unit 1 is relu(3) always: 3·5 and 3·7 go into the biases. Nobody reads unit 2.
    model = _dense([[[1, 2], [0, 0], [3, -4]], [[1, 5, 0], [4, 7, 0]]], [[0.5, 3, -1], [0, 1]])
    before = copy.deepcopy(model.state_dict())
    found = redundant_weights(model, torch.randn(5, 2))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "0.weight": [[1, 2], [0, 0], [0, 0]],
        "0.bias": [0.5, 0, 0],
        "2.weight": [[1, 0, 0], [4, 0, 0]],
        "2.bias": [15, 22],
    }
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_no_bias_is_made_where_there_is_none():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight[1] = 0
    assert redundant_weights(model, torch.randn(3, 2)) == {}


def test_a_network_that_cannot_be_traced_stays():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    assert redundant_weights(Asks(2, 2), torch.randn(3, 2)) == {}


@pytest.mark.parametrize("name", ["lenet5", "wrn18", "resnet20"])
def test_outputs_stay(name):
    shape = {"lenet5": (1, 28, 28), "wrn18": (1, 28, 28), "resnet20": (3, 32, 32)}[name]
    torch.manual_seed(0)
    model = build(name, shape, 10).eval()
    for weight in prunable_weights(model).values():
        weight.tensor.data[torch.rand_like(weight.tensor) < 0.95] = 0
        weight.tensor.data[torch.rand(len(weight.tensor)) < 0.4] = 0
    x = torch.randn(4, *shape)
    with torch.no_grad():
        expected = model(x)
        found = redundant_weights(model, x)
        model.load_state_dict({**model.state_dict(), **found})
        got = model(x)
    assert found
    assert float((got - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def test_an_export_of_a_clean_network(tmp_path):
    for folder in ("out", "plain"):
        (tmp_path / folder).mkdir()
    training_job.train(Request(tmp_path / "m.pt", epochs=1, sparsity=0.98, method="gmp"))
    notes: list[str] = []

    class Listens(JobCallback):
        def on_note(self, text):
            notes.append(text)

    options = ExportOptions(
        ("safetensors", "pack", "onnx"), "fp32", OnnxOptions(latency=False), True
    )
    request = Request(tmp_path / "m.pt")
    written = export_file(tmp_path / "m.pt", request, options, tmp_path / "out", Listens())
    (more,) = (int(t.split()[0].replace(",", "")) for t in notes if "reached no output" in t)
    assert more > 0
    zeros = report(read(tmp_path / "m.pt")).zeros
    for file in written[:2]:
        assert report(read(file.path)).zeros == zeros + more
    source, packed = (
        evaluate.evaluate_file(path, request)
        for path in (tmp_path / "m.pt", tmp_path / "out/m.lpss")
    )
    assert source.metrics["accuracy"] == packed.metrics["accuracy"]
    plain = export_file(
        tmp_path / "m.pt", request, ExportOptions(("pack",), "fp32"), tmp_path / "plain"
    )
    assert written[[w.kind for w in written].index("pack")].bytes < plain[0].bytes
