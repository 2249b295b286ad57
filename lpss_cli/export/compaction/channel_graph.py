"""Which channels of a traced network belong together: the graph that a compaction works on.

Every value in the graph has channels along one axis. A channel that passes through an activation or
a pooling stays the same channel, an addition ties the channels of its operands, and only linear
layers and convolutions make new ones. Tied channels can only be removed together. Channels that
pass through an operation that is not understood must stay.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Indices = np.ndarray[Any, np.dtype[np.int64]]

# Operations on every entry by itself, whatever the axis of the channels.
_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POINTWISE = (
    torch.relu, torch.sigmoid, torch.tanh, torch.neg, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu,
    F.silu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.mish, F.dropout, F.dropout2d,
    operator.neg, "relu", "relu_", "sigmoid", "tanh", "contiguous", "clone",
)  # fmt: skip
# Operations on every channel by itself: channels along axis 1, positions along the later axes.
_POOL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_POOL = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip
_ARITHMETIC = (
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, "add", "add_", "sub", "mul", "mul_", "div",
)  # fmt: skip
_MEAN = (torch.mean, "mean")
_CAT = (torch.cat, torch.concat)
_RESHAPES = (torch.flatten, torch.reshape, "flatten", "view", "reshape")


@dataclass(frozen=True)
class Channels:
    """The channels of one value.

    Attributes:
        ids: the number of each channel along ``axis``. Behind a flatten a channel occurs several
            times, once for each position.
        axis: the axis of the channels.
    """

    ids: Indices
    axis: int


@dataclass
class ChannelGraph:
    """The channels of every value in a graph.

    Attributes:
        channels: node → channels of its value.
        kinds: node → what it does to channels, see :func:`kind_of`.
        columns: ``linear`` node → the channels that the columns of its weight read.
        pinned: ids of channels that must stay.
        unknown: names of the operations that are not understood.
    """

    channels: dict[fx.Node, Channels] = field(default_factory=dict)
    kinds: dict[fx.Node, str | None] = field(default_factory=dict)
    columns: dict[fx.Node, Indices] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    # A forest of disjoint sets: id → parent.
    _parents: list[int] = field(default_factory=list)

    def new_channels(self, count: int) -> Indices:
        """Return ids for ``count`` new channels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, first: Indices, second: Indices) -> None:
        """Let channels stay or go together, pair by pair."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self._root(b)] = self._root(a)

    def roots(self, ids: Indices) -> Indices:
        """Return for each channel the id that all channels tied to it share."""
        return np.array([self._root(i) for i in ids.tolist()], dtype=np.int64)

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

    def pin(self, ids: Indices) -> None:
        """Keep these channels."""
        self.pinned.update(ids.tolist())


def build_channel_graph(traced: fx.GraphModule) -> ChannelGraph:
    """Follow the channels through a graph whose nodes know their shapes (``ShapeProp``).

    Reshapes that keep the batch and merge the other dimensions must have been written as
    ``flatten(x, 1)`` (:func:`write_flattens`), because their sizes change with the channels.
    """
    graph = ChannelGraph()
    modules = dict(traced.named_modules())
    shared = _shared_modules(traced, modules)
    for node in traced.graph.nodes:
        inputs = [graph.channels[n] for n in node.all_input_nodes if n in graph.channels]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        kind = None if str(node.target) in shared else kind_of(node, module, graph.channels)
        graph.kinds[node] = kind
        shape = shape_of(node)
        if kind is None:
            for value in inputs:
                graph.pin(value.ids)
            if shape is not None and len(shape) > 1:
                graph.channels[node] = Channels(graph.new_channels(shape[1]), 1)
                graph.pin(graph.channels[node].ids)
                if node.op.startswith("call"):
                    graph.unknown.add(_operation_name(node, module))
            continue
        assert shape is not None  # only nodes that make a tensor have a kind
        graph.channels[node] = _output_channels(kind, node, module, inputs, shape, graph)
    return graph


def _output_channels(
    kind: str,
    node: fx.Node,
    module: nn.Module | None,
    inputs: list[Channels],
    shape: tuple[int, ...],
    graph: ChannelGraph,
) -> Channels:
    """Return the channels of a node's value, and add to the graph what the node does to them."""
    first = inputs[0]
    if kind == "linear":
        assert module is not None
        axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        graph.columns[node] = _columns(module, first, axis, graph)
        return Channels(graph.new_channels(shape[axis]), axis)
    if kind == "elementwise":
        for other in inputs[1:]:
            graph.tie(first.ids, other.ids)
    elif kind == "cat":
        parts = [graph.channels[part] for part in as_list(node.args[0])]
        return Channels(np.concatenate([part.ids for part in parts]), first.axis)
    elif kind == "flatten":
        return Channels(np.repeat(first.ids, shape[1] // len(first.ids)), 1)
    return first


def _columns(module: nn.Module, source: Channels, axis: int, graph: ChannelGraph) -> Indices:
    """Return the channels that a layer reads.

    If it reads along another axis than that of the channels, these are new ones, and all stay.
    """
    if source.axis == axis:
        return source.ids
    graph.pin(source.ids)
    assert isinstance(module, nn.Linear)
    features = graph.new_channels(module.in_features)
    graph.pin(features)
    return features


def _operation_name(node: fx.Node, module: nn.Module | None) -> str:
    target = module.__class__ if module is not None else node.target
    return str(getattr(target, "__name__", target))


def _shared_modules(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> set[str]:
    """Return the names of modules whose parameters are used in more than one place."""
    called = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    read_directly = {id(p) for p in _attributes(traced)}
    uses = Counter(id(p) for name in called for p in modules[name].parameters())
    return {
        name
        for name in called
        if any(uses[id(p)] > 1 or id(p) in read_directly for p in modules[name].parameters())
    }


def _attributes(traced: fx.GraphModule) -> list[Any]:
    return [
        operator.attrgetter(str(n.target))(traced) for n in traced.graph.nodes if n.op == "get_attr"
    ]


def kind_of(
    node: fx.Node, module: nn.Module | None, channels: Mapping[fx.Node, Channels]
) -> str | None:
    """Return how a node treats channels.

    Args:
        node: a node of a graph that knows its shapes.
        module: the module that it calls, if it calls one.
        channels: the channels of all nodes before it.

    Returns:
        ``linear`` (a layer that makes new channels), ``channelwise`` (every channel of one input by
        itself), ``elementwise`` (operands with the same channels), ``cat``, ``flatten``, or None if
        the node is not understood.
    """
    shape, inputs = shape_of(node), node.all_input_nodes
    if shape is None or not node.op.startswith("call") or not inputs:
        return None
    if any(n not in channels for n in inputs):
        return None
    before, source = shape_of(inputs[0]), channels[inputs[0]]
    assert before is not None  # whatever has channels is a tensor
    if module is not None:
        return _module_kind(module, before, source.axis)
    if _calls(node, _POINTWISE) and len(inputs) == 1:
        return "channelwise"
    has_positions = source.axis == 1 and len(before) > 2
    if _calls(node, _POOL):
        return "channelwise" if has_positions else None
    if _calls(node, _MEAN):
        dims = _dims(node, len(before))
        return "channelwise" if has_positions and dims and min(dims) > 1 else None
    if _calls(node, _ARITHMETIC):
        return _arithmetic_kind(inputs, channels)
    if _calls(node, _CAT):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        axes = {channels[n].axis for n in inputs}
        same_axis = axes == {source.axis} and dim in (source.axis, source.axis - len(before))
        return "cat" if same_axis else None
    if node.target is torch.flatten:
        return "flatten" if source.axis == 1 and shape == flattened(before) else None
    return None


def _module_kind(module: nn.Module, before: tuple[int, ...], axis: int) -> str | None:
    if isinstance(module, _POINTWISE_MODULES):
        return "channelwise"
    if isinstance(module, nn.Linear | _ConvNd) and not is_plain(module):
        return None
    if isinstance(module, nn.Linear):
        return "linear"
    if axis != 1:
        return None
    if isinstance(module, _POOL_MODULES):
        returns_indices = getattr(module, "return_indices", False)
        return "channelwise" if len(before) > 2 and not returns_indices else None
    if isinstance(module, _BatchNorm):
        return "channelwise" if module.running_mean is not None else None
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        if len(before) != module.weight.dim():  # an input without a batch dimension
            return None
        if module.groups == 1:
            return "linear"
        return "channelwise" if is_depthwise(module) else None
    if isinstance(module, nn.Flatten):
        to_end = module.start_dim == 1 and module.end_dim in (-1, len(before) - 1)
        return "flatten" if to_end else None
    return None


def _arithmetic_kind(inputs: list[fx.Node], channels: Mapping[fx.Node, Channels]) -> str | None:
    """Return the kind of an operation on one tensor and a number, or on several tensors.

    The tensors must have the same channels along the same axis; positions may be broadcast.
    """
    operands = [channels[n] for n in inputs]
    shapes = [shape_of(n) or () for n in inputs]
    first, dimensions = operands[0], len(shapes[0])
    alike = all(
        (len(operand.ids), operand.axis, len(shape)) == (len(first.ids), first.axis, dimensions)
        for operand, shape in zip(operands, shapes, strict=True)
    )
    if not alike:
        return None
    return "channelwise" if len(inputs) == 1 else "elementwise"


def is_plain(module: nn.Module) -> bool:
    """Return whether a layer's weight is a parameter: not computed by a hook or otherwise."""
    return isinstance(module.weight, nn.Parameter) and not module._forward_pre_hooks


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a convolution makes every channel from the one of the same index."""
    return (
        isinstance(module, _ConvNd)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )


def write_flattens(traced: fx.GraphModule) -> None:
    """Write every reshape of (N, …) to (N, rest) as ``flatten(x, 1)``; drop what nothing reads."""
    for node in traced.graph.nodes:
        if not _calls(node, _RESHAPES):
            continue
        before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
        if before and after and len(before) > 1 and after == flattened(before):
            node.op, node.target = "call_function", torch.flatten
            node.args, node.kwargs = (node.all_input_nodes[0], 1), {}
    traced.graph.eliminate_dead_code()


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape that ``ShapeProp`` saw; None if the node does not make a single tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def flattened(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (N, a·b·…) for (N, a, b, …)."""
    return shape[0], prod(shape[1:])


def as_list(value: Any) -> list[Any]:
    """Return the items of a list or tuple, a list of one for another value, and [] for None."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _dims(node: fx.Node, count: int) -> list[int]:
    """Return the dimensions that a node reduces, from 0 to ``count`` - 1."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return [d % count for d in as_list(dims) if isinstance(d, int)]
