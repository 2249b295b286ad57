"""What the operations of a traced network do to channels, as far as that is understood."""

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

# Every entry by itself, whatever the axis of the channels.
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
# Every channel by itself, counted along axis 1, over positions.
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
    """The channels of one value: their numbers along ``axis``, each as often as it occurs."""

    ids: Indices
    axis: int


def kind_of(
    node: fx.Node, module: nn.Module | None, values: Mapping[fx.Node, Channels]
) -> str | None:
    """Say how a node treats channels.

    Args:
        node: of a graph that knows its shapes.
        module: what it calls, if that is a module.
        values: the channels of all nodes before it.

    Returns:
        ``mix`` (a layer that makes new channels), ``each`` (channel by channel), ``join``
        (operands of equal channels), ``cat``, ``flatten``, or None: that is not understood.
    """
    shape, inputs = shape_of(node), node.all_input_nodes
    if shape is None or not node.op.startswith("call") or not inputs:
        return None
    if any(n not in values for n in inputs):
        return None
    before, source = shape_of(inputs[0]), values[inputs[0]]
    assert before is not None  # whatever has channels is a tensor
    if module is not None:
        return _module_kind(module, before, source.axis)
    if _is(node, _POINTWISE) and len(inputs) == 1:
        return "each"
    positions = source.axis == 1 and len(before) > 2
    if _is(node, _POOL):
        return "each" if positions else None
    if _is(node, _MEAN):
        dims = _dims(node, len(before))
        return "each" if positions and dims and min(dims) > 1 else None
    if _is(node, _ARITHMETIC):
        return _arithmetic_kind(inputs, values)
    if _is(node, _CAT):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        axes = {values[n].axis for n in inputs}
        same = axes == {source.axis} and dim in (source.axis, source.axis - len(before))
        return "cat" if same else None
    if node.target is torch.flatten:
        return "flatten" if source.axis == 1 and shape == flattened(before) else None
    return None


def _module_kind(module: nn.Module, before: tuple[int, ...], axis: int) -> str | None:
    if isinstance(module, _POINTWISE_MODULES):
        return "each"
    if isinstance(module, nn.Linear | _ConvNd) and not is_plain(module):
        return None
    if isinstance(module, nn.Linear):
        return "mix"
    if axis != 1:
        return None
    if isinstance(module, _POOL_MODULES):
        indices = getattr(module, "return_indices", False)
        return "each" if len(before) > 2 and not indices else None
    if isinstance(module, _BatchNorm):
        return "each" if module.running_mean is not None else None
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
        if len(before) != module.weight.dim():  # without a batch
            return None
        if module.groups == 1:
            return "mix"
        return "each" if is_depthwise(module) else None
    if isinstance(module, nn.Flatten):
        whole = module.start_dim == 1 and module.end_dim in (-1, len(before) - 1)
        return "flatten" if whole else None
    return None


def _arithmetic_kind(inputs: list[fx.Node], values: Mapping[fx.Node, Channels]) -> str | None:
    """Two tensors of the same channels, maybe broadcast over positions; or one and a number."""
    known = [values[n] for n in inputs]
    shapes = [shape_of(n) or () for n in inputs]
    alike = all(
        (len(v.ids), v.axis, len(shape)) == (len(known[0].ids), known[0].axis, len(shapes[0]))
        for v, shape in zip(known, shapes, strict=True)
    )
    if not alike:
        return None
    return "each" if len(inputs) == 1 else "join"


def is_plain(module: nn.Module) -> bool:
    """Whether a layer's weight is a parameter: not computed from others, by hooks or otherwise."""
    return isinstance(module.weight, nn.Parameter) and not module._forward_pre_hooks


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution makes every channel from the one of the same number."""
    return (
        isinstance(module, _ConvNd)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )


def write_flattens(traced: fx.GraphModule) -> None:
    """Write every reshape of (N, …) to (N, rest) as ``flatten(x, 1)``; drop what nobody reads."""
    for node in traced.graph.nodes:
        if not _is(node, _RESHAPES):
            continue
        before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
        if before and after and len(before) > 1 and after == flattened(before):
            node.op, node.target = "call_function", torch.flatten
            node.args, node.kwargs = (node.all_input_nodes[0], 1), {}
    traced.graph.eliminate_dead_code()


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape that ``ShapeProp`` saw; None where the node makes no single tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def flattened(shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, a, b, …) → (N, a·b·…)."""
    return shape[0], prod(shape[1:])


def _is(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _dims(node: fx.Node, count: int) -> list[int]:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return [d % count for d in as_list(dims) if isinstance(d, int)]


def as_list(value: Any) -> list[Any]:
    """Return the items of a list or tuple, one value as a list of one, None as none."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


# MERGED: Which channels of a traced network hang together: the map that a compaction works on.
# MERGED: Every value of the graph has channels along one axis. A channel that passes through an
# MERGED: activation
# MERGED: or a pooling stays the same channel; an addition ties the channels of its operands; only
# MERGED: a linear
# MERGED: layer or a convolution makes new ones. What is tied can only be removed together.
@dataclass
class ChannelGraph:
    """The channels of every value of a graph.

    Attributes:
        values: node → its channels.
        kinds: node → what it does to channels (:func:`channels.kind_of`).
        columns: ``mix`` node → the channels that the columns of its weight read.
        pinned: numbers of channels that must stay.
        unknown: what was not understood, for people.
    """

    values: dict[fx.Node, Channels] = field(default_factory=dict)
    kinds: dict[fx.Node, str | None] = field(default_factory=dict)
    columns: dict[fx.Node, Indices] = field(default_factory=dict)
    pinned: set[int] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    _parents: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> Indices:
        """Number ``count`` new channels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, first: Indices, second: Indices) -> None:
        """Let channels stay or go together, pair by pair."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parents[self._root(b)] = self._root(a)

    def roots(self, ids: Indices) -> Indices:
        """Return the number that all channels tied together share."""
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

    Reshapes that keep the batch and join the rest must have been written as ``flatten(x, 1)``
    (:func:`write_flattens`): their sizes change with the channels.
    """
    wiring = ChannelGraph()
    modules = dict(traced.named_modules())
    shared = _shared(traced, modules)
    for node in traced.graph.nodes:
        inputs = [wiring.values[n] for n in node.all_input_nodes if n in wiring.values]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        kind = None if str(node.target) in shared else kind_of(node, module, wiring.values)
        wiring.kinds[node] = kind
        shape = shape_of(node)
        if kind is None:
            for value in inputs:
                wiring.pin(value.ids)
            if shape is not None and len(shape) > 1:
                wiring.values[node] = Channels(wiring.fresh(shape[1]), 1)
                wiring.pin(wiring.values[node].ids)
                if node.op.startswith("call"):
                    wiring.unknown.add(_name(node, module))
            continue
        assert shape is not None  # only nodes that make a tensor have a kind
        wiring.values[node] = _outputs(kind, node, module, inputs, shape, wiring)
    return wiring


def _outputs(
    kind: str,
    node: fx.Node,
    module: nn.Module | None,
    inputs: list[Channels],
    shape: tuple[int, ...],
    wiring: ChannelGraph,
) -> Channels:
    """Return the channels of a value that is understood."""
    first = inputs[0]
    if kind == "mix":
        assert module is not None
        axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        wiring.columns[node] = _columns(module, first, axis, wiring)
        return Channels(wiring.fresh(shape[axis]), axis)
    if kind == "join":
        for other in inputs[1:]:
            wiring.tie(first.ids, other.ids)
    elif kind == "cat":
        parts = [wiring.values[part] for part in as_list(node.args[0])]
        return Channels(np.concatenate([part.ids for part in parts]), first.axis)
    elif kind == "flatten":
        return Channels(np.repeat(first.ids, shape[1] // len(first.ids)), 1)
    return first


def _columns(module: nn.Module, source: Channels, axis: int, wiring: ChannelGraph) -> Indices:
    """Return the channels a layer reads; other ones that stay where it reads along another axis."""
    if source.axis == axis:
        return source.ids
    wiring.pin(source.ids)
    assert isinstance(module, nn.Linear)
    features = wiring.fresh(module.in_features)
    wiring.pin(features)
    return features


def _name(node: fx.Node, module: nn.Module | None) -> str:
    target = module.__class__ if module is not None else node.target
    return str(getattr(target, "__name__", target))


def _shared(traced: fx.GraphModule, modules: dict[str, nn.Module]) -> set[str]:
    """Names of modules whose parameters are used in more than one place."""
    called = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    read = {id(p) for p in _attributes(traced)}
    places = Counter(id(p) for name in called for p in modules[name].parameters())
    return {
        name
        for name in called
        if any(places[id(p)] > 1 or id(p) in read for p in modules[name].parameters())
    }


def _attributes(traced: fx.GraphModule) -> list[Any]:
    return [
        operator.attrgetter(str(n.target))(traced) for n in traced.graph.nodes if n.op == "get_attr"
    ]
