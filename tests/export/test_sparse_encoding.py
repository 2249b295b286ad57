"""Rows of numbers without their zeros, and back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lpss_cli.export.onnx.runtime import open_session
from lpss_cli.export.onnx.sparse_encoding import (
    encode,
    encode_weights,
    expand_weights,
    round_weights,
)


def row(count, positions):
    """Return ``count`` zeros with 1, 2, 3, … at these positions."""
    flat = np.zeros(count, np.float32)
    flat[positions] = np.arange(1, len(positions) + 1)
    return flat


def decode(stored, count):
    """Return the row, decoded one gap at a time."""
    flat, place = np.zeros(count, stored.values.dtype), 0
    values = iter(stored.values)
    for gap in stored.gaps.tolist():
        if gap == stored.escape:
            place += gap - 1
        else:
            place += gap
            flat[place] = next(values)
    return flat


@pytest.mark.parametrize(
    ("positions", "gaps"),
    [
        ([0, 1, 3], [0, 1, 2]),
        ([254], [254]),
        ([255], [255, 1]),  # 254 further, and 1
        ([508], [255, 254]),
        ([0, 1, 2, 511], [0, 1, 1, 255, 255, 1]),
        ([5, 260], [5, 255, 1]),
    ],
)
def test_gaps_in_closed_form(positions, gaps):
    stored = encode(row(600, positions))
    assert stored.gaps.dtype == np.uint8
    assert stored.gaps.tolist() == gaps
    assert stored.values.tolist() == [*range(1, len(positions) + 1)]
    assert decode(stored, 600).tolist() == row(600, positions).tolist()


def test_wide_gaps_take_two_bytes_if_that_is_smaller():
    flat = row(300_000, [100_000, 200_000, 299_999])
    stored = encode(flat)
    assert stored.gaps.dtype == np.uint16
    assert stored.gaps.tolist() == [65535, 34466, 65535, 34466, 65535, 34465]
    assert np.array_equal(decode(stored, 300_000), flat)


def test_a_row_of_zeros_keeps_one():
    stored = encode(np.zeros(7, np.float32))
    assert (stored.gaps.tolist(), stored.values.tolist()) == ([0], [0])
    assert not decode(stored, 7).any()


def model_of(arrays):
    """Return an ONNX model that has these arrays as its weights and outputs."""
    weights = [numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"out{i}"]) for i in range(len(arrays))]
    outputs = [
        helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, list(a.shape))
        for i, a in enumerate(arrays)
    ]
    graph = helper.make_graph(nodes, "g", [], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model):
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString()).run(None, {})


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_onnxruntime_expands_any_tensors_to_the_same_numbers(kinds, seed):
    rng = np.random.default_rng(seed)
    arrays = [
        rng.normal(size=n).astype(np.float32) * (rng.random(n) < density**4) for n, density in kinds
    ]
    model = model_of(arrays)
    folded = encode_weights(model)
    for array, got in zip(arrays, run(folded), strict=True):
        assert np.array_equal(array, got)
    for name, got in expand_weights(folded).items():
        assert np.array_equal(arrays[int(name[1:])], got)
    assert folded.ByteSize() <= model.ByteSize() + 1100  # names and nodes of the expansion


def test_shapes_are_restored_and_dense_tensors_stay():
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=(20, 5, 3, 3)).astype(np.float32) * (rng.random((20, 5, 3, 3)) < 0.05)
    dense = rng.normal(size=(30, 10)).astype(np.float32)
    folded = encode_weights(model_of([sparse, dense]))
    assert set(expand_weights(folded)) == {"w0"}
    first, second = run(folded)
    assert np.array_equal(first, sparse)
    assert np.array_equal(second, dense)


def test_half_precision_values_round_and_nothing_else():
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=4000).astype(np.float32) * (rng.random(4000) < 0.05)
    model = model_of([sparse])
    (got,) = run(encode_weights(model, "fp16"))
    assert np.array_equal(got, sparse.astype(np.float16).astype(np.float32))
    assert np.array_equal(run(round_weights(model, "fp16"))[0], got)
    assert encode_weights(model, "fp16").ByteSize() < encode_weights(model).ByteSize() - 300


def test_the_file_is_about_as_large_as_its_gaps_and_values():
    rng = np.random.default_rng(0)
    sparse = rng.normal(size=100_000).astype(np.float32) * (rng.random(100_000) < 0.1)
    kept = np.count_nonzero(sparse)
    assert encode_weights(model_of([sparse])).ByteSize() < 5 * kept + 1500


def test_indices_of_features_take_four_bytes():
    index = numpy_helper.from_array(np.array([0, 2, 5]), "index")
    nodes = [
        helper.make_node("Gather", ["x", "index"], ["y"], axis=1),
        helper.make_node("Cast", ["shape"], ["z"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yz"]
    input_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])
    other = numpy_helper.from_array(np.array([7]), "shape")
    graph = helper.make_graph(nodes, "g", [input_info], values, [index, other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folded = encode_weights(model)
    assert [t.data_type for t in folded.graph.initializer] == [TensorProto.INT32, TensorProto.INT64]
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    picked, _ = open_session(folded.SerializeToString()).run(None, {"x": x})
    assert picked.tolist() == [[0, 2, 5], [6, 8, 11]]
