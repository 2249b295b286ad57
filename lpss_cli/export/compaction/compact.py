"""Exact removal of dead units: a sparse network as a smaller dense one with the same outputs.

Two rules are applied until nothing changes. A channel that is the same number for every input (its
row is zero, so it is the activation of its bias) moves into the biases of the layers that read it,
which leaves their columns zero. A channel whose columns are zero in every layer that reads it is
not needed, so its row becomes zero. At the end, the rows and columns of channels that nothing needs
are removed. What is left of a wide linear layer reads only the features it needs, if that saves
more than the extra step costs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from lpss_cli.errors import one_line
from lpss_cli.export.compaction.channel_graph import (
    ChannelGraph,
    Indices,
    build_channel_graph,
    is_depthwise,
    is_plain,
    shape_of,
    write_flattens,
)
from lpss_cli.export.compaction.constant_folding import ConstantFolder
from lpss_cli.reporting.flops import LayerSize, Savings, layer_sizes

#: Largest difference of an output, relative to the largest |output|.
TOLERANCE = 1e-5
# Multiply-adds per example that selecting features must save: about what selecting costs.
_SELECTION_COST = 20_000


@dataclass(frozen=True)
class Compacted:
    """A network without its dead units, and what that saved.

    Attributes:
        model: the smaller network in evaluation mode on the CPU; a copy of the given one if it
            could not be made smaller.
        savings: its layers before and after.
    """

    model: nn.Module
    savings: Savings


def compact(model: nn.Module, example: Tensor) -> Compacted:
    """Remove units that have no input or that nothing reads; outputs stay the same up to rounding.

    BatchNorm directly after a layer is folded into the layer. A constant other than zero that a
    zero-padded convolution reads is not constant at the borders: all such channels of one value are
    merged into one of them. Channels that pass through an operation that is not understood are
    kept, and a network that cannot be traced is returned as it is.

    Args:
        model: the network, in any mode and on any device; it is not changed.
        example: (N ≥ 1, …) inputs; the outputs of both networks are compared on them.

    Returns:
        The smaller network, whose outputs on ``example`` differ by at most ``TOLERANCE`` of the
        largest; or else the network as it is, and the reason.
    """
    original = copy.deepcopy(model).cpu().eval()
    before = layer_sizes(original, example)
    try:
        smaller, unknown = _compact(original, example)
        difference = _difference(original, smaller, example)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        return _unchanged(original, before, f"the network cannot be traced: {one_line(error)}")
    if not difference <= TOLERANCE:
        return _unchanged(original, before, f"outputs would differ by {difference:.1e}")
    reason = f"channels through {', '.join(sorted(unknown))} are kept" if unknown else ""
    parameters = _count_parameters(original), _count_parameters(smaller)
    return Compacted(smaller, Savings(before, layer_sizes(smaller, example), parameters, reason))


@torch.no_grad()
def redundant_weights(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Find the weights and biases that can be zero with the same outputs; shapes do not change.

    They lead into units that nothing reads, or out of units that are constant. What such a constant
    adds moves into the next bias, if the network has one there.

    Args:
        model: the network, in any mode and on any device; it is not changed.
        example: (N ≥ 1, …) inputs; the outputs of both networks are compared on them.

    Returns:
        Name in the state_dict → new value, for the tensors that change; empty if the network cannot
        be traced or its outputs would change.
    """
    original = copy.deepcopy(model).cpu().eval()
    try:
        traced, dtype = _trace(original, example)
        graph = build_channel_graph(traced)
        _simplify(traced, graph, new_biases=False)
    except Exception:  # tracing runs the network's own code, which may raise anything
        return {}
    after = traced.to(dtype).state_dict()
    before = original.state_dict()
    changed = {n: t for n, t in after.items() if n in before and not t.equal(before[n])}
    smaller = copy.deepcopy(original)
    smaller.load_state_dict({**before, **changed})
    return changed if _difference(original, smaller, example) <= TOLERANCE else {}


def _unchanged(model: nn.Module, sizes: tuple[LayerSize, ...], reason: str) -> Compacted:
    count = _count_parameters(model)
    return Compacted(model, Savings(sizes, sizes, (count, count), reason))


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _difference(first: nn.Module, second: nn.Module, example: Tensor) -> float:
    """Return the largest difference of the outputs, relative to the largest |output|."""
    a, b = first(example), second(example)
    return float((a - b).abs().max()) / (float(a.abs().max()) or 1.0)


@torch.no_grad()
def _compact(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, set[str]]:
    """Return the smaller network, and the operations that are not understood."""
    traced, dtype = _trace(model, example)
    _fold_batchnorm(traced)
    graph = build_channel_graph(traced)
    _simplify(traced, graph, new_biases=True)
    _remove_unneeded(traced, graph)
    _select_features(traced, graph)
    traced.to(dtype)
    traced.recompile()
    return traced, graph.unknown


def _trace(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, torch.dtype]:
    """Return the graph of a copy in float64, which knows its shapes, and the model's dtype."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    ShapeProp(traced).propagate(example)
    write_flattens(traced)
    return traced.double(), dtype  # so that folding and merging round once, at the end


def _simplify(traced: fx.GraphModule, graph: ChannelGraph, *, new_biases: bool) -> None:
    """Apply both rules until nothing changes."""
    folder = ConstantFolder(traced, graph, new_biases=new_biases)
    while folder.fold() | _zero_unneeded(traced, graph):
        pass


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    """Fold every BatchNorm that directly follows a layer which nothing else reads."""
    modules = dict(traced.named_modules())
    calls = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        source, norm = node.all_input_nodes[0], modules[node.target]
        called_once = calls.count(node.target) == calls.count(str(source.target)) == 1
        if source.op != "call_module" or not called_once or len(source.users) > 1:
            continue
        layer, shape = modules[source.target], shape_of(source) or ()
        folded: nn.Module
        if norm.running_mean is None or not is_plain(layer):
            continue
        if isinstance(layer, _ConvNd):
            folded = fuse_conv_bn_eval(layer, norm, layer.transposed)
        elif isinstance(layer, nn.Linear) and len(shape) == 2:
            folded = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        traced.set_submodule(source.target, folded)
        modules[source.target] = folded
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()


def _zero_unneeded(traced: fx.GraphModule, graph: ChannelGraph) -> bool:
    """Zero rows and biases of channels that nothing needs; return whether any was not zero."""
    needed, changed = _needed_channels(traced, graph), False
    for node in graph.columns:
        ids = graph.roots(graph.channels[node].ids)
        unneeded = torch.from_numpy(~np.isin(ids, needed))
        module = traced.get_submodule(str(node.target))
        for tensor in (module.weight, module.bias):
            if isinstance(tensor, Tensor) and bool(tensor[unneeded].any()):
                tensor[unneeded] = 0
                changed = True
    return changed


def _remove_unneeded(traced: fx.GraphModule, graph: ChannelGraph) -> None:
    """Remove rows and columns of channels that nothing needs; every layer keeps one channel."""
    needed = _needed_channels(traced, graph)
    outputs = {node: graph.roots(graph.channels[node].ids) for node in graph.columns}
    only_channels = [ids[:1] for ids in outputs.values() if not np.isin(ids, needed).any()]
    needed = np.concatenate([needed, *only_channels])
    for node, kind in graph.kinds.items():
        if node.op != "call_module" or kind not in ("linear", "channelwise"):
            continue
        module = traced.get_submodule(str(node.target))
        rows = torch.from_numpy(np.isin(graph.roots(graph.channels[node].ids), needed))
        if kind == "linear":
            columns = torch.from_numpy(np.isin(graph.roots(graph.columns[node]), needed))
            _slice_layer(module, rows, columns)
        elif is_depthwise(module):
            _slice_layer(module, rows, None)
        elif isinstance(module, _BatchNorm):
            _slice_norm(module, rows)


def _select_features(traced: fx.GraphModule, graph: ChannelGraph) -> None:
    """Let linear layers with some zero columns read only the other features.

    Features of one channel (positions behind a flatten), or inputs of the network, cannot be
    removed where they come from.
    """
    for node in graph.columns:
        layer, source = traced.get_submodule(str(node.target)), node.all_input_nodes[0]
        if not isinstance(layer, nn.Linear) or len(shape_of(source) or ()) != 2:
            continue
        read = layer.weight.any(0)
        saved = int((~read).sum()) * layer.out_features
        if saved < _SELECTION_COST or not bool(read.any()):
            continue
        name = f"{str(node.target).replace('.', '_')}_reads"
        traced.register_buffer(name, read.nonzero().squeeze(1).int())
        with traced.graph.inserting_before(node):
            index = traced.graph.get_attr(name)
            selected = traced.graph.call_function(torch.index_select, (source, 1, index))
        node.replace_input_with(source, selected)
        _slice_layer(layer, torch.ones(layer.out_features, dtype=torch.bool), read)


def _needed_channels(traced: fx.GraphModule, graph: ChannelGraph) -> Indices:
    """Return the roots of the channels that must stay: pinned ones, and those a layer reads."""
    needed = [np.array(sorted(graph.pinned), dtype=np.int64)]
    for node, ids in graph.columns.items():
        weight = traced.get_submodule(str(node.target)).weight
        assert isinstance(weight, Tensor)
        read = weight.movedim(1, 0).flatten(1).any(1).numpy()
        needed.append(ids[read])
    return np.unique(graph.roots(np.concatenate(needed)))


def _slice_layer(module: nn.Module, rows: Tensor, columns: Tensor | None) -> None:
    """Keep some outputs and inputs of a layer; None for a depthwise layer, which has no columns."""
    assert isinstance(module, nn.Linear | _ConvNd)
    weight = module.weight[rows] if columns is None else module.weight[rows][:, columns]
    module.weight = nn.Parameter(weight.contiguous())
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias[rows])
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
        return
    module.out_channels = len(weight)
    module.in_channels = len(weight) if columns is None else weight.shape[1]
    module.groups = len(weight) if columns is None else 1


def _slice_norm(module: _BatchNorm, kept: Tensor) -> None:
    module.num_features = int(kept.sum())
    for name in ("weight", "bias"):
        tensor = getattr(module, name)
        if tensor is not None:
            setattr(module, name, nn.Parameter(tensor[kept]))
    for name in ("running_mean", "running_var"):
        setattr(module, name, getattr(module, name)[kept])
