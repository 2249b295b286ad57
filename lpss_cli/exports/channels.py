"""What the operations of a traced network do to channels, as far as that is understood."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
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
