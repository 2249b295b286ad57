"""Taking channels out of a traced network that nobody needs, and reading features that are needed.

A channel that no layer reads is not needed, so its row becomes zero; at the end rows and columns of
such channels are cut out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lpss_cli.exports.channels import Indices, is_depthwise, shape_of
from lpss_cli.exports.wiring import Wiring

# Multiply-adds of an example that picking features must save: about what picking costs.
_WORTH_PICKING = 20_000


def _needed(traced: fx.GraphModule, wiring: Wiring) -> Indices:
    """Return the roots of the channels that must stay."""
    used = [np.array(sorted(wiring.pinned), dtype=np.int64)]
    for node, ids in wiring.columns.items():
        weight = _weight(traced, node)
        columns = weight.movedim(1, 0).flatten(1).any(1).numpy()
        used.append(ids[columns])
    return np.unique(wiring.roots(np.concatenate(used)))


def drop_unused(traced: fx.GraphModule, wiring: Wiring) -> bool:
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


def cut(traced: fx.GraphModule, wiring: Wiring) -> None:
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


def pick_features(traced: fx.GraphModule, wiring: Wiring) -> None:
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
