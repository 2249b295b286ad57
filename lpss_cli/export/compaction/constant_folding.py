"""Channels that are the same number for every input, and their move into the next biases.

This is our own code on purpose. The constant folding of ``torch.fx`` and of ONNX runtimes replaces
whole values that do not depend on the input; here single channels of a value are constants, among
others that are not. The move is exact in real numbers, and the network is in float64 meanwhile, so
that it is rounded only once at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from lpss_cli.export.compaction.channel_graph import ChannelGraph, Channels, shape_of

Numbers = np.ndarray[Any, np.dtype[np.float64]]

# An average of equal numbers may be off by a few roundings.
_EQUAL = 1e-12


class ConstantFolder:
    """Finds constant channels in a traced float64 network and folds them into the next layers.

    Args:
        traced: the network; its graph knows shapes. Weights and biases of its layers are changed in
            place.
        channel_graph: its channels.
        new_biases: whether a layer without a bias may get one; if not, the constants that it reads
            stay where they are.
    """

    def __init__(
        self, traced: fx.GraphModule, channel_graph: ChannelGraph, *, new_biases: bool = True
    ) -> None:
        self._new_biases = new_biases
        self._channel_graph = channel_graph
        self._modules = dict(traced.named_modules())
        # Node → the constants of its channels; NaN for a channel that depends on the input.
        self._constants: dict[fx.Node, Numbers] = {}

    @torch.no_grad()
    def fold(self) -> bool:
        """Go through the graph once; return whether any weight changed."""
        changed = False
        for node, channels in self._channel_graph.channels.items():
            kind = self._channel_graph.kinds[node]
            if kind == "linear":
                changed |= self._fold_into(node)
                self._constants[node] = self._constant_rows(node)
            else:
                self._constants[node] = self._propagate(node, kind, channels)
        return changed

    def _propagate(self, node: fx.Node, kind: str | None, channels: Channels) -> Numbers:
        """Return the constants of a value that is computed channel by channel."""
        unknown = np.full(len(channels.ids), np.nan)
        if kind is None:
            return unknown
        sources = [self._constants[source] for source in _sources(node)]
        if kind == "cat":
            return np.concatenate(sources)
        if kind == "flatten":
            return np.repeat(sources[0], len(unknown) // len(sources[0]))
        if all(np.isnan(constants).all() for constants in sources):
            return unknown
        return self._run(node, channels.axis)

    def _run(self, node: fx.Node, axis: int) -> Numbers:
        """Run an operation on constant inputs; a channel is constant if all positions agree.

        So padding, windows and parameters are judged by what the operation does, and not by its
        options.
        """

        def constant_input(source: fx.Node) -> Tensor:
            shape = (1, *(shape_of(source) or ())[1:])
            along_channels = [1] * len(shape)
            along_channels[self._channel_graph.channels[source].axis] = -1
            constants = torch.from_numpy(self._constants[source])
            return constants.view(along_channels).expand(shape).clone()

        args = fx.map_arg(node.args, constant_input)
        kwargs = fx.map_arg(node.kwargs, constant_input)
        if node.op == "call_module":
            output = self._modules[str(node.target)](*args, **kwargs)
        elif node.op == "call_method":
            output = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            output = node.target(*args, **kwargs)  # type: ignore[operator]  # a function here
        rows = output.movedim(axis, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        is_constant = high - low <= _EQUAL * high.abs()  # False for NaN
        return torch.where(is_constant, high, torch.nan).numpy()

    def _fold_into(self, node: fx.Node) -> bool:
        """Move the constants that a layer reads into its bias, and zero their columns."""
        layer = self._layer(node)
        source = node.all_input_nodes[0]
        constants = self._constants[source]
        if len(constants) != len(self._channel_graph.columns[node]):  # it reads along another axis
            return False
        read = layer.weight.movedim(1, 0).flatten(1).any(1).numpy() & ~np.isnan(constants)
        changed = False
        if _pads_with_zeros(layer):
            # Only zero is the same at the borders. Any other constant holds inside only.
            changed = self._merge(layer, read & (constants != 0), constants)
            read &= constants == 0
        if not read.any():
            return changed
        columns = torch.from_numpy(read)
        moved = layer.weight.flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight
        bias = moved[:, columns] @ torch.from_numpy(constants)[columns]
        if layer.bias is not None:
            layer.bias += bias
        elif bool(bias.any()):
            if not self._new_biases:
                return changed
            layer.bias = nn.Parameter(bias)
        layer.weight[:, columns] = 0
        return True

    @staticmethod
    def _merge(layer: nn.Linear | _ConvNd, which: np.ndarray[Any, Any], constants: Numbers) -> bool:
        """Let one constant channel stand for all of ``which``, as multiples of it."""
        # All readers of a value must choose the same channel: the largest, which loses no digits.
        largest = int(np.nanargmax(np.abs(constants))) if which.any() else 0
        which = which.copy()
        which[largest] = False
        if not which.any():
            return False
        columns = torch.from_numpy(which)
        scales = torch.from_numpy(constants / constants[largest])[columns]
        along_columns = (1, -1, *[1] * (layer.weight.dim() - 2))
        merged = (layer.weight[:, columns] * scales.view(along_columns)).sum(1)
        layer.weight[:, largest] += merged
        layer.weight[:, columns] = 0
        return True

    def _constant_rows(self, node: fx.Node) -> Numbers:
        """Return the bias of every row without weights, which is its output; NaN for the others."""
        layer = self._layer(node)
        live = layer.weight.flatten(1).any(1)
        bias = torch.zeros(len(live), dtype=torch.float64) if layer.bias is None else layer.bias
        return torch.where(live, torch.nan, bias).numpy()

    def _layer(self, node: fx.Node) -> nn.Linear | _ConvNd:
        layer = self._modules[str(node.target)]
        assert isinstance(layer, nn.Linear | _ConvNd)
        return layer


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a node reads, in order and as often as it reads them."""
    sources: list[fx.Node] = []

    def collect(source: fx.Node) -> fx.Node:
        sources.append(source)
        return source

    fx.map_arg((node.args, node.kwargs), collect)
    return sources


def _pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same"
    return any(module.padding)
