"""ONNX files hold the model, and every sort of tampering is caught."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lpss_cli.errors import RunError
from lpss_cli.export.compaction.compact import compact
from lpss_cli.export.onnx import export, sparse_encoding
from lpss_cli.export.onnx.check import compare_outputs
from lpss_cli.export.onnx.export import TOLERANCE, export_onnx
from lpss_cli.export.onnx.runtime import rounding_tolerance
from lpss_cli.models import build
from lpss_cli.sparsity.prunable import prunable_weights


def masked(model: nn.Module) -> nn.Module:
    """Prune 70 % at random."""
    for weight in prunable_weights(model).values():
        weight.tensor.data[torch.rand_like(weight.tensor) < 0.7] = 0
    return model


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attn(x, x, x, need_weights=False)[0].mean(1))


def mlp() -> nn.Module:
    return masked(build("mlp:12-8-4", (12,), 4))


def residual() -> nn.Module:
    model = masked(build("wrn12", (1, 8, 8), 10))
    for _ in range(3):  # statistics that folding has to move into the weights
        model(1 + 2 * torch.randn(32, 1, 8, 8))
    model.bn1.weight.data[3] = 0  # a dead channel: folding makes all its weights zero
    return model


def tied() -> nn.Module:
    layer = nn.Linear(12, 12)
    return masked(nn.Sequential(layer, nn.ReLU(), layer))


MODELS = {
    "mlp": (mlp, (12,)),
    "residual": (residual, (1, 8, 8)),
    "attention": (lambda: masked(Attention()), (6, 8)),
    "tied": (tied, (12,)),
}


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """Export every model once: name → (model, result)."""
    made = {}
    for name, (make, shape) in MODELS.items():
        torch.manual_seed(0)
        model, inputs = make(), torch.randn(5, *shape)
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        training = model.training
        result = export_onnx(model, inputs, path, metadata={"lpss": "facts"})
        assert model.training == training
        made[name] = model.eval(), result
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_onnx_takes_any_batch_and_gives_the_models_outputs(onnx_files, name, batch):
    model, result = onnx_files[name]
    x = torch.randn(batch, *MODELS[name][1])
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=10 * TOLERANCE * np.abs(expected).max())


def test_onnx_results_are_described(onnx_files):
    for _, result in onnx_files.values():
        assert result.to_dict()["kind"] == "onnx"
        assert result.bytes == os.path.getsize(result.path)
        assert 0 <= result.largest_difference <= TOLERANCE
        assert "5 real inputs" in result.checked


def test_onnx_files_hold_their_metadata_and_nothing_of_this_machine(onnx_files):
    for _, result in onnx_files.values():
        proto = onnx.load(result.path)
        assert {e.key: e.value for e in proto.metadata_props} == {"lpss": "facts"}
        assert b"site-packages" not in proto.SerializeToString()


def test_zeros_survive_folding_and_folding_happened(onnx_files):
    model, result = onnx_files["residual"]
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer
    }
    assert not any("running_var" in name for name in stored)
    folded = 0
    for name, weight in prunable_weights(model).items():
        tensor = weight.tensor.detach().numpy()
        assert (tensor == 0).mean() > 0.5
        assert (stored[name][tensor == 0] == 0).all()
        folded += not np.array_equal(stored[name], tensor)
    assert folded == len(prunable_weights(model)) - 1  # all but the classifier


@pytest.fixture
def tamper(monkeypatch, onnx_files, tmp_path):
    """Export a model again, with the initializers of its file edited on the way."""

    def run(name, edit):
        model, made = onnx_files[name]
        proto = onnx.load(made.path)
        for i, tensor in enumerate(proto.graph.initializer):
            array = onnx.numpy_helper.to_array(tensor).copy()
            edit(tensor.name, array)
            proto.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        monkeypatch.setattr(export, "to_onnx", lambda *_: proto)
        (tmp_path / "m.onnx").write_bytes(b"old")
        try:
            return export_onnx(model, torch.randn(5, *MODELS[name][1]), tmp_path / "m.onnx")
        finally:
            assert os.listdir(tmp_path) == ["m.onnx"]

    return run


def test_an_untouched_file_passes_the_same_way(tamper):
    assert tamper("mlp", lambda name, array: None).largest_difference <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mlp", "fc1.weight"),
        ("residual", "layer2.0.conv1.weight"),
        ("attention", "attn.in_proj_weight"),
    ],
)
def test_a_revived_zero_is_caught_even_if_no_output_shows_it(tamper, tmp_path, model, name):
    def revive(stored, array):
        # Attention's projection is stored transposed, under the exporter's own name.
        if stored == name or array.shape == (8, 24):
            array[np.unravel_index((array == 0).argmax(), array.shape)] = 1e-12

    with pytest.raises(RunError, match=f"does not hold the zeros of {name}"):
        tamper(model, revive)
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_other_outputs_are_caught(tamper, tmp_path, factor):
    def scale(_, array):
        array *= factor

    with pytest.raises(RunError, match=r"the outputs of .* differ by"):
        tamper("mlp", scale)
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


@pytest.fixture(scope="module")
def gap_files(tmp_path_factory):
    """Export every model self-expanding: (model, result, inputs, values)."""
    made = []
    for name, (make, shape) in MODELS.items():
        for values in ("fp32", "fp16"):
            torch.manual_seed(0)
            model, inputs = make().eval(), torch.randn(5, *shape)
            path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
            result = export_onnx(model, inputs, path, encoding="gaps", values=values)
            made.append((model, result, inputs, values))
    return made


def test_self_expanding_files_give_the_models_outputs(gap_files):
    for model, result, inputs, values in gap_files:
        session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"input": inputs.numpy()})
        with torch.no_grad():
            expected = model(inputs).numpy()
        off = np.abs(got - expected).max() / np.abs(expected).max()
        assert off <= (TOLERANCE if values == "fp32" else 1e-2)
        assert "bit for bit" in result.checked


def test_self_expanding_files_store_no_zero_weights(gap_files):
    for model, result, _, _ in gap_files:
        proto = onnx.load(result.path)
        onnx.checker.check_model(proto, full_check=True)
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        kept = sum(int((w.tensor != 0).sum()) for w in prunable_weights(model).values())
        assert 0 < len(stored["sparse/values"]) <= kept + 1
        assert not any((a == 0).mean() > 0.5 for a in stored.values() if a.size > 200)


@pytest.mark.parametrize("change", ["sparse/values", "sparse/gaps"])
def test_a_self_expanding_file_with_other_weights_is_caught(monkeypatch, tmp_path, change):
    fold = sparse_encoding.encode_weights

    def wrong(proto, values):
        made = fold(proto, values)
        for i, tensor in enumerate(made.graph.initializer):
            if tensor.name == change:
                array = onnx.numpy_helper.to_array(tensor).copy()
                if change == "sparse/values":
                    array[7] = np.nextafter(array[7], 1)  # no output shows the last bit
                else:
                    array[7] += 1
                    array[8] -= 1
                made.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, change))
        return made

    monkeypatch.setattr(sparse_encoding, "encode_weights", wrong)
    torch.manual_seed(0)
    model, inputs = residual().eval(), 1e-3 * torch.randn(5, 1, 8, 8)
    with pytest.raises(RunError, match=r"expands|differ"):
        export_onnx(model, inputs, tmp_path / "m.onnx", encoding="gaps")
    assert os.listdir(tmp_path) == []


def test_the_rounding_tolerance_in_closed_form():
    class Cancelling(nn.Module):
        def forward(self, x):
            return (x + 4096.0) - 4096.0  # fp32 has steps of 2^-11 there

    inputs = torch.tensor([[1.0, 0.5 + 2**-13]])
    assert rounding_tolerance(Cancelling(), inputs) == 4 * 2**-13
    assert rounding_tolerance(nn.Linear(2, 2), inputs) < 1e-6

    class Fp32(nn.Module):
        def forward(self, x):
            return torch.ones(2) @ x.new_ones(2, 2)

    assert rounding_tolerance(Fp32(), inputs) == 0  # it does not run in fp64


@pytest.mark.parametrize(
    ("difference", "rounding", "fine"),
    [(1e-5, 0, True), (2e-5, 0, False), (3e-5, 4e-5, True), (5e-5, 4e-5, False),
     (2e-5, float("nan"), False), (float("nan"), 1.0, False)],
)  # fmt: skip
def test_outputs_may_differ_by_the_rounding_tolerance(difference, rounding, fine):
    reference = torch.tensor([[2.0, -4.0]], dtype=torch.float64)
    outputs = reference + 4 * torch.tensor([[difference * 0.99, 0.0]], dtype=torch.float64)
    with nullcontext() if fine else pytest.raises(RunError, match="differ by"):
        compare_outputs(
            outputs, reference, Path("m.onnx"), tolerance=1e-5, rounding=lambda: rounding
        )


def test_a_compacted_network_is_compared_with_the_one_it_came_from(tmp_path):
    torch.manual_seed(0)
    model, inputs = mlp().eval(), torch.randn(50, 12)
    model.fc1.weight.data[2] = 0
    smaller = compact(model, inputs).model
    with torch.no_grad():
        reference = model(inputs)
    path = tmp_path / "m.onnx"
    result = export_onnx(smaller, inputs, path, reference=reference, labels=True)
    assert (result.compared, result.changed) == (50, 0)
    stored = {t.name: list(t.dims) for t in onnx.load(path).graph.initializer}
    assert stored["fc1.weight"][0] < 8
    with pytest.raises(RunError, match=r"the outputs of .* differ by"):
        export_onnx(smaller, inputs, path, reference=reference + 1)
