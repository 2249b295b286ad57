"""Self-expanding ONNX: sparse weights as gaps and values that standard operators put in place.

All sparse weights of a file are laid end to end. Of that row of numbers, the file stores the
nonzero values and the distance from each to the one before, in one byte (or in two, where that is
smaller). A distance of 255 or more is written as bytes of 255, each of which moves on by 254 and
stores no value, and the rest. A runtime expands the weights when it loads the file:

    gaps → Cast → Min → CumSum: the positions      gaps < 255 → CumSum → Gather, Where: the values
    zeros, positions, values → ScatterElements → Split → Reshape: the weights

No operator's shape depends on values, so constant folding can do all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpss_cli.export.onnx.runtime import open_session

Array = np.ndarray[Any, Any]

# Begins the name of every node and tensor of the expansion, so that readers see what they are for.
_PREFIX = "sparse/"
# Bytes that expanding one more weight costs: its shape, its names, its node.
_OVERHEAD = 150


@dataclass(frozen=True)
class Gaps:
    """A row of numbers without its zeros.

    Attributes:
        gaps: uint8 or uint16 distances; the largest number of the dtype moves on by one less and
            stores no value.
        values: the nonzero values, one for each other gap.
    """

    gaps: Array
    values: Array

    @property
    def escape(self) -> int:
        """The gap that stores no value."""
        return int(np.iinfo(self.gaps.dtype).max)

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.gaps.nbytes + self.values.nbytes)


def encode(flat: Array) -> Gaps:
    """Store a row (n ≥ 1) of numbers by its gaps; -0.0 counts as zero.

    Of a row of zeros the first one is kept, so that no array is empty.
    """
    positions = np.flatnonzero(flat)
    if not len(positions):
        positions = np.zeros(1, np.int64)
    distances = np.diff(positions, prepend=0)
    candidates = [_split_distances(distances, dtype) for dtype in (np.uint8, np.uint16)]
    return Gaps(min(candidates, key=lambda gaps: gaps.nbytes), flat[positions])


def _split_distances(distances: Array, dtype: type[np.unsignedinteger[Any]]) -> Array:
    """Write each distance as escapes and a rest of one or more: no two values share a position."""
    escape = int(np.iinfo(dtype).max)
    escapes = np.maximum(distances - 1, 0) // (escape - 1)
    ends = np.cumsum(escapes + 1)
    gaps = np.full(ends[-1], escape, dtype)
    gaps[ends - 1] = distances - escapes * (escape - 1)
    return gaps


def round_weights(proto: Any, values: str) -> Any:
    """Return a copy of a model with its sparse weights rounded, but stored dense.

    Args:
        proto: an ONNX model, with its weights stored inside.
        values: ``fp32`` (exact) or ``fp16``.
    """
    from onnx import numpy_helper

    copy = type(proto)()
    copy.CopyFrom(proto)
    if values == "fp16":
        for tensor in _sparse_weights(copy.graph):
            array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


def encode_weights(proto: Any, values: str = "fp32") -> Any:
    """Return a copy of a model whose sparse weights are stored by gaps and expand themselves.

    Weights that would not become smaller stay as they are.

    Args:
        proto: an ONNX model of opset 13 or later, with its weights stored inside.
        values: ``fp32`` (exact) or ``fp16``.
    """
    from onnx import helper, numpy_helper

    proto = round_weights(proto, values)
    _narrow_indices(proto.graph)
    weights = _sparse_weights(proto.graph)
    if not weights:
        return proto
    arrays = [numpy_helper.to_array(tensor) for tensor in weights]
    flat = np.concatenate([array.ravel() for array in arrays])
    tensors, nodes, row = _expansion(encode(flat), len(flat), values)
    names = [tensor.name for tensor in weights]
    parts = [f"{_PREFIX}part{i}" for i in range(len(names))] if len(names) > 1 else [row]
    if len(names) > 1:
        sizes = np.array([array.size for array in arrays], np.int64)
        tensors.append(numpy_helper.from_array(sizes, f"{_PREFIX}sizes"))
        nodes.append(helper.make_node("Split", [row, tensors[-1].name], parts, f"{_PREFIX}split"))
    for i, (name, array, part) in enumerate(zip(names, arrays, parts, strict=True)):
        shape = np.array(array.shape, np.int64)
        tensors.append(numpy_helper.from_array(shape, f"{_PREFIX}shape{i}"))
        inputs = [part, tensors[-1].name]
        nodes.append(helper.make_node("Reshape", inputs, [name], f"{_PREFIX}reshape{i}"))
    _replace_weights(proto.graph, set(names), tensors, nodes)
    return proto


def _sparse_weights(graph: Any) -> list[Any]:
    """Return the fp32 weights of a graph that are smaller by gaps."""
    from onnx import TensorProto, numpy_helper

    interface = {item.name for item in (*graph.input, *graph.output)}
    weights = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in interface:
            continue
        array = numpy_helper.to_array(tensor)
        kept = int(np.count_nonzero(array))
        if 5 * kept + array.size / 255 + _OVERHEAD < 4 * array.size:
            weights.append(tensor)
    return weights


def _narrow_indices(graph: Any) -> None:
    """Store lists of features to read in four bytes each instead of eight."""
    from onnx import TensorProto, numpy_helper

    uses = [(node, i, name) for node in graph.node for i, name in enumerate(node.input)]
    other_uses = {name for node, i, name in uses if (node.op_type, i) != ("Gather", 1)}
    other_uses |= {item.name for item in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT64 and tensor.name not in other_uses:
            array = numpy_helper.to_array(tensor)
            if array.size and abs(array).max() < 2**31:
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.int32), tensor.name))


def _expansion(stored: Gaps, count: int, values: str) -> tuple[list[Any], list[Any], str]:
    """Return tensors and nodes that expand a row of ``count`` numbers, and the name of the row."""
    from onnx import TensorProto, helper, numpy_helper

    position_type = TensorProto.INT32 if count < 2**31 else TensorProto.INT64
    position_dtype = helper.tensor_dtype_to_np_dtype(position_type)
    kept = stored.values.astype(np.float16 if values == "fp16" else np.float32)
    constants = {
        "gaps": stored.gaps,
        "values": kept,
        "axis": np.array(0, np.int64),
        "length": np.array([count], np.int64),
    }
    nodes: list[Any] = []

    def add(op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{_PREFIX}{op_type.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    names = {name: f"{_PREFIX}{name}" for name in (*constants, "escape", "most", "nothing")}
    steps = add("Cast", [names["gaps"]], to=position_type)
    numbers = names["values"]
    if values == "fp16":
        numbers = add("Cast", [numbers], to=TensorProto.FLOAT)
    if bool((stored.gaps == stored.escape).any()):
        constants["escape"] = np.array(stored.escape, position_dtype)
        constants["most"] = np.array(stored.escape - 1, position_dtype)
        constants["nothing"] = np.zeros((), np.float32)
        # The values are counted from one: a zero goes before them, for escapes at the start.
        constants["values"] = np.concatenate([np.zeros(1, kept.dtype), kept])
        has_value = add("Less", [steps, names["escape"]])
        which = add("CumSum", [add("Cast", [has_value], to=position_type), names["axis"]])
        numbers = add("Where", [has_value, add("Gather", [numbers, which]), names["nothing"]])
        steps = add("Min", [steps, names["most"]])
    positions = add("CumSum", [steps, names["axis"]])
    zeros = add("ConstantOfShape", [names["length"]])
    row = add("ScatterElements", [zeros, positions, numbers], axis=0)
    tensors = [numpy_helper.from_array(array, names[name]) for name, array in constants.items()]
    return tensors, nodes, row


def _replace_weights(graph: Any, names: set[str], tensors: list[Any], nodes: list[Any]) -> None:
    """Replace the weights of these names by their expansion."""
    others = [tensor for tensor in graph.initializer if tensor.name not in names]
    network = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*others, *tensors])
    graph.node.extend([*nodes, *network])


def expand_weights(proto: Any) -> dict[str, Array]:
    """Let onnxruntime expand the weights of a self-expanding file, and return them by name."""
    from onnx import TensorProto, helper

    graph = proto.graph
    nodes = [node for node in graph.node if node.name.startswith(_PREFIX)]
    names = [out for node in nodes for out in node.output if not out.startswith(_PREFIX)]
    if not names:
        return {}
    inputs = {name for node in nodes for name in node.input}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    tensors = [tensor for tensor in graph.initializer if tensor.name in inputs]
    expansion = helper.make_graph(nodes, "weights", [], outputs, tensors)
    model = helper.make_model(
        expansion, opset_imports=proto.opset_import, ir_version=proto.ir_version
    )
    return dict(zip(names, open_session(model.SerializeToString()).run(None, {}), strict=True))
