"""Exact removal of dead units: a sparse network as a smaller dense one with the same outputs.

Two rules, until nothing changes. A channel that is the same number for every input (its row is
zero, so it is the activation of its bias) moves into the biases of the layers that read it, which
leaves their columns zero. A channel whose columns are zero in every layer that reads it is not
needed, so its row becomes zero. At the end rows and columns of channels nobody needs are cut out.
What is left of a wide linear layer reads the features it needs alone, where that is worth a step.
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
from lpss_cli.export.compaction.constant_folding import Constants
from lpss_cli.report.flops import LayerSize, Savings, layer_sizes

# MERGED: Taking channels out of a traced network that nobody needs, and reading features that are
# MERGED: needed.
# MERGED: A channel that no layer reads is not needed, so its row becomes zero; at the end rows
# MERGED: and columns of
# MERGED: such channels are cut out.
# Multiply-adds of an example that picking features must save: about what picking costs.
_WORTH_PICKING = 20_000


def _needed(traced: fx.GraphModule, wiring: ChannelGraph) -> Indices:
    """Return the roots of the channels that must stay."""
    used = [np.array(sorted(wiring.pinned), dtype=np.int64)]
    for node, ids in wiring.columns.items():
        weight = _weight(traced, node)
        columns = weight.movedim(1, 0).flatten(1).any(1).numpy()
        used.append(ids[columns])
    return np.unique(wiring.roots(np.concatenate(used)))


def drop_unused(traced: fx.GraphModule, wiring: ChannelGraph) -> bool:
    """Zero the rows and biases of channels that nobody needs; say whether any was not zero."""
    needed, changed = _needed(traced, wiring), False
    for node in wiring.columns:
        ids = wiring.roots(wiring.values[node].ids)
        unused = torch.from_numpy(~np.isin(ids, needed))
        module = traced.get_submodule(str(node.target))
        for tensor in (module.weight, module.bias):
            if isinstance(tensor, Tensor) and bool(tensor[unused].any()):
                tensor[unused] = 0
                changed = True
    return changed


def cut(traced: fx.GraphModule, wiring: ChannelGraph) -> None:
    """Cut out the rows and columns of channels that nobody needs; every layer keeps one."""
    needed = _needed(traced, wiring)
    made = {node: wiring.roots(wiring.values[node].ids) for node in wiring.columns}
    empty = [ids[:1] for ids in made.values() if not np.isin(ids, needed).any()]
    needed = np.concatenate([needed, *empty])
    for node, kind in wiring.kinds.items():
        if node.op != "call_module" or kind not in ("mix", "each"):
            continue
        module = traced.get_submodule(str(node.target))
        rows = torch.from_numpy(np.isin(wiring.roots(wiring.values[node].ids), needed))
        if kind == "mix":
            columns = torch.from_numpy(np.isin(wiring.roots(wiring.columns[node]), needed))
            _slice_layer(module, rows, columns)
        elif is_depthwise(module):
            _slice_layer(module, rows, None)
        elif isinstance(module, _BatchNorm):
            _slice_norm(module, rows)


def pick_features(traced: fx.GraphModule, wiring: ChannelGraph) -> None:
    """Let linear layers whose columns are zero here and there read the other features only.

    Features of one channel (positions behind a flatten), or inputs of the network, cannot be
    removed where they come from.
    """
    for node in wiring.columns:
        layer, source = traced.get_submodule(str(node.target)), node.all_input_nodes[0]
        if not isinstance(layer, nn.Linear) or len(shape_of(source) or ()) != 2:
            continue
        read = layer.weight.any(0)
        saved = int((~read).sum()) * layer.out_features
        if saved < _WORTH_PICKING or not bool(read.any()):
            continue
        name = f"{str(node.target).replace('.', '_')}_reads"
        traced.register_buffer(name, read.nonzero().squeeze(1).int())
        with traced.graph.inserting_before(node):
            index = traced.graph.get_attr(name)
            picked = traced.graph.call_function(torch.index_select, (source, 1, index))
        node.replace_input_with(source, picked)
        _slice_layer(layer, torch.ones(layer.out_features, dtype=torch.bool), read)


def _slice_layer(module: nn.Module, rows: Tensor, columns: Tensor | None) -> None:
    """Keep some outputs and some inputs of a layer; None: a depthwise one, which has no columns."""
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


def _weight(traced: fx.GraphModule, node: fx.Node) -> Tensor:
    weight = traced.get_submodule(str(node.target)).weight
    assert isinstance(weight, Tensor)
    return weight


# Largest difference of an output, as a part of the largest |output|.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Compacted:
    """A network without its dead units, and what that saved.

    Attributes:
        model: the smaller network in evaluation mode on the CPU; the given one where it could not
            be made.
        savings: its layers before and after.
    """

    model: nn.Module
    savings: Savings


def compact(model: nn.Module, example: Tensor) -> Compacted:
    """Remove units without input or without use; outputs stay the same up to rounding.

    BatchNorm directly after a layer is folded into it. A constant other than zero that a
    zero-padded convolution reads is no constant at the borders: all such channels of one value are
    merged into one of them. Channels that pass through an operation that is not understood are
    kept; a network that cannot be traced is returned as it is.

    Args:
        model: the network, in any mode and on any device; it is left as it is.
        example: (N ≥ 1, …) inputs; the outputs of both networks are compared on them.

    Returns:
        The smaller network; the outputs on ``example`` differ by ``TOLERANCE`` of the largest at
        most, or it is the given one.
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
    sizes = _parameters(original), _parameters(smaller)
    return Compacted(smaller, Savings(before, layer_sizes(smaller, example), sizes, reason))


def _unchanged(model: nn.Module, sizes: tuple[LayerSize, ...], reason: str) -> Compacted:
    count = _parameters(model)
    return Compacted(model, Savings(sizes, sizes, (count, count), reason))


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _difference(first: nn.Module, second: nn.Module, example: Tensor) -> float:
    """Largest difference of the outputs, as a part of the largest."""
    a, b = first(example), second(example)
    return float((a - b).abs().max()) / (float(a.abs().max()) or 1.0)


@torch.no_grad()
def dead_ends(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Find the weights and biases that can be zero with the same outputs, shapes as they are.

    They lead into units that nobody reads, or out of units that are a constant; what such a
    constant adds goes into the next bias, where the network has one.

    Args:
        model: the network, in any mode and on any device; it is left as it is.
        example: (N ≥ 1, …) inputs; the outputs of both networks are compared on them.

    Returns:
        Name in the state_dict → the tensor as it may be, for those that change; none where the
        network cannot be traced.
    """
    original = copy.deepcopy(model).cpu().eval()
    try:
        traced, kind = _trace(original, example)
        wiring = build_channel_graph(traced)
        constants = Constants(traced, wiring, new_biases=False)
        while constants.fold() | drop_unused(traced, wiring):
            pass
    except Exception:  # tracing runs the network's own code, which may raise anything
        return {}
    after = traced.to(kind).state_dict()
    before = original.state_dict()
    found = {n: t for n, t in after.items() if n in before and not t.equal(before[n])}
    smaller = copy.deepcopy(original)
    smaller.load_state_dict({**before, **found})
    return found if _difference(original, smaller, example) <= TOLERANCE else {}


def _trace(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, torch.dtype]:
    """Return the graph of a copy in float64, which knows its shapes, and the type it had."""
    kind = next((p.dtype for p in model.parameters()), torch.float32)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    ShapeProp(traced).propagate(example)
    write_flattens(traced)
    return traced.double(), kind  # folding and merging round once, at the end


@torch.no_grad()
def _compact(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, set[str]]:
    """Return the smaller network and the operations that were not understood."""
    traced, kind = _trace(model, example)
    _fold_batchnorm(traced)
    wiring = build_channel_graph(traced)
    constants = Constants(traced, wiring)
    while constants.fold() | drop_unused(traced, wiring):
        pass
    cut(traced, wiring)
    pick_features(traced, wiring)
    traced.to(kind)
    traced.recompile()
    return traced, wiring.unknown


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    """Fold every BatchNorm that directly follows a layer which nothing else reads."""
    modules = dict(traced.named_modules())
    calls = [str(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        source, norm = node.all_input_nodes[0], modules[node.target]
        once = calls.count(node.target) == calls.count(str(source.target)) == 1
        if source.op != "call_module" or not once or len(source.users) > 1:
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
