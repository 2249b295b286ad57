"""The ONNX files of one network: exact, quantized, timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import blobs, network

from lpss_cli.data import TensorSource
from lpss_cli.errors import InputError, RunError
from lpss_cli.export.onnx import export, pipeline, runtime
from lpss_cli.export.onnx.export import serialize, to_onnx
from lpss_cli.export.onnx.pipeline import write_onnx
from lpss_cli.export.onnx.runtime import run_onnx, run_torch
from lpss_cli.export.options import ENCODINGS, OnnxOptions
from lpss_cli.training.evaluation import evaluate


@pytest.fixture(scope="module")
def trained():
    """Return data and a network that separates its classes, with half of its units dead."""
    data, model = blobs(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        data.task.loss(model(data.train.x), data.train.y).backward()
        optimizer.step()
    model[0].weight.data[::2] = 0
    return data, model.eval()


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Write all files of the network: (fp32, int8)."""
    data, model = trained
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return write_onnx(model, data, path, {"lpss": "facts"}, OnnxOptions(int8=True))


def stored(path):
    tensors = onnx.load(path).graph.initializer
    return {t.name: onnx.numpy_helper.to_array(t) for t in tensors}


def test_the_fp32_file_is_the_network_without_its_dead_units(trained, files):
    data, model = trained
    fp32 = files[0]
    assert [layer.shape for layer in fp32.savings.after] == [(20, 12), (4, 20)]
    assert {a.shape for a in stored(fp32.path).values() if a.ndim == 2} == {(20, 12), (4, 20)}
    assert (fp32.compared, fp32.changed) == (128, 0)
    assert "0 predictions changed" in fp32.checked
    assert fp32.metrics == evaluate(model, data.test, data.task)
    assert fp32.metrics["accuracy"] > 0.9


def test_the_int8_file_is_measured_too(trained, files):
    data, model = trained
    fp32, int8 = files
    assert Path(int8.path).name == "m.int8.onnx"
    assert (fp32.values, int8.values) == ("fp32", "int8")
    assert int8.metrics["accuracy"] > fp32.metrics["accuracy"] - 0.05
    assert int8.largest_difference > fp32.largest_difference
    outputs, expected = run_onnx(Path(int8.path), data.test.x), run_torch(model, data.test.x)
    assert int8.changed == int((outputs.argmax(1) != expected.argmax(1)).sum())
    kinds = {node.op_type for node in onnx.load(int8.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    for file in files:
        proto = onnx.load(file.path)
        assert {e.key: e.value for e in proto.metadata_props} == {"lpss": "facts"}


def test_int8_is_calibrated_only_on_training_inputs_and_zeros_stay(trained):
    data, model = trained
    model[0].weight.data[1, :6] = 0
    dense = serialize(to_onnx(model, data.test.x))
    first = export.quantize(dense, data.train, {})
    wider = TensorSource(10 * data.train.x, data.train.y)
    assert export.quantize(dense, wider, {}) != first
    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(first).graph.initializer]
    weights = [a for a in arrays if a.dtype == np.int8 and a.shape == (40, 12)]
    assert len(weights) == 1
    assert not weights[0][(model[0].weight == 0).numpy()].any()


def test_latency_of_all_files_and_of_the_network_with_all_units(files):
    fp32, int8 = files
    names = [(Path(t.network).name, t.batch) for t in fp32.latency]
    assert names == [("with all units", 1), ("with all units", 64), ("m.onnx", 1), ("m.onnx", 64)]
    assert [Path(t.network).name for t in int8.latency] == ["m.int8.onnx"] * 2
    for time in (*fp32.latency, *int8.latency):
        assert 0 < time.low <= time.median <= time.high
        assert (time.threads, time.runs > 1) == (1, True)
        assert time.runtime.startswith("onnxruntime ")


def test_a_batch_size_that_would_take_too_long_is_left_out(trained):
    data, model = trained
    content = serialize(to_onnx(model, data.test.x))
    rows = runtime.measure_latency({"a": content, "b": content}, data.test.x[:3], budget=1e-9)
    assert [(row.network, row.batch) for row in rows] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize("compact", [True, False])
def test_steps_that_are_not_requested_are_skipped(trained, tmp_path, compact):
    data, model = trained
    options = OnnxOptions(compact=compact, encoding="gaps", latency=False)
    (file,) = write_onnx(model, data, tmp_path / "m.onnx", {}, options)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert file.latency == ()
    assert (file.savings is None) != compact
    assert "sparse/gaps" in stored(file.path) or compact


def test_as_many_examples_are_compared_as_time_allows(trained, monkeypatch, tmp_path):
    data, model = trained
    monkeypatch.setattr(pipeline, "_MAX_WORK", 50 * 2 * (12 * 40 + 40 * 4))
    monkeypatch.setattr(pipeline, "_MIN_EXAMPLES", 10)
    (file,) = write_onnx(model, data, tmp_path / "m.onnx", {}, OnnxOptions(latency=False))
    assert file.compared == 50


def test_a_wrong_compaction_is_caught_on_the_test_data(trained, monkeypatch, tmp_path):
    data, model = trained
    compact = pipeline.compact

    def wrong(model, example):
        found = compact(model, example)
        found.model.get_submodule("4").bias.data[0] += 0.01
        return found

    monkeypatch.setattr(pipeline, "compact", wrong)
    with pytest.raises(RunError, match=r"the outputs of .* differ by"):
        write_onnx(model, data, tmp_path / "m.onnx", {}, OnnxOptions())
    assert list(tmp_path.iterdir()) == []


def test_regression_has_no_predictions_to_change(tmp_path):
    from lpss_cli.data.tasks import REGRESSION

    data, model = blobs(), torch.nn.Sequential(torch.nn.Linear(12, 1)).eval()
    halves = [TensorSource(s.x, s.y.float()) for s in (data.train, data.test)]
    data = replace(data, task=REGRESSION, train=halves[0], test=halves[1], outputs=1)
    options = OnnxOptions(latency=False)
    (file,) = write_onnx(model, data, tmp_path / "m.onnx", {}, options)
    assert file.changed is None
    assert "predictions" not in file.checked
    assert "r2" in file.metrics


def test_an_unknown_encoding_is_refused():
    with pytest.raises(InputError, match="--onnx-encoding 'gap' is not a choice") as error:
        OnnxOptions(encoding="gap").check()
    assert "did you mean 'gaps'" in error.value.do
    assert set(ENCODINGS) == {"dense", "gaps"}
