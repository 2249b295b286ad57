"""Channels that are the same number for every input, and their move into the next biases."""

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


class Constants:
    """Finds constants in a traced float64 network and folds them into the layers that read them.

    Args:
        traced: its graph knows shapes; weights and biases of its layers are changed in place.
        wiring: its channels.
        new_biases: whether a layer without a bias may get one; else its constants stay.
    """

    def __init__(
        self, traced: fx.GraphModule, wiring: ChannelGraph, *, new_biases: bool = True
    ) -> None:
        self._new_biases = new_biases
        self._wiring = wiring
        self._modules = dict(traced.named_modules())
        # Node → its channels' constants; NaN where a channel depends on the input.
        self._known: dict[fx.Node, Numbers] = {}

    @torch.no_grad()
    def fold(self) -> bool:
        """Go once through the graph; say whether any weight changed."""
        changed = False
        for node, channels in self._wiring.values.items():
            kind = self._wiring.kinds[node]
            if kind == "mix":
                changed |= self._fold_into(node)
                self._known[node] = self._biases(node)
            else:
                self._known[node] = self._constants(node, kind, channels)
        return changed

    def _constants(self, node: fx.Node, kind: str | None, channels: Channels) -> Numbers:
        unknown = np.full(len(channels.ids), np.nan)
        if kind is None:
            return unknown
        known = [self._known[source] for source in _sources(node)]
        if kind == "cat":
            return np.concatenate(known)
        if kind == "flatten":
            return np.repeat(known[0], len(unknown) // len(known[0]))
        if all(np.isnan(constants).all() for constants in known):
            return unknown
        return self._run(node, channels.axis)

    def _run(self, node: fx.Node, axis: int) -> Numbers:
        """Run an operation on constant inputs; a channel is constant if all positions agree.

        That judges padding, windows and parameters by what the operation does, not by its options.
        """

        def image(source: fx.Node) -> Tensor:
            shape = (1, *(shape_of(source) or ())[1:])
            along = [1] * len(shape)
            along[self._wiring.values[source].axis] = -1
            return torch.from_numpy(self._known[source]).view(along).expand(shape).clone()

        args = fx.map_arg(node.args, image)
        kwargs = fx.map_arg(node.kwargs, image)
        if node.op == "call_module":
            result = self._modules[str(node.target)](*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]  # a function here
        rows = result.movedim(axis, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        even = high - low <= _EQUAL * high.abs()  # False for NaN
        return torch.where(even, high, torch.nan).numpy()

    def _fold_into(self, node: fx.Node) -> bool:
        """Move the constants that a layer reads into its bias, and zero their columns."""
        module = self._layer(node)
        source = node.all_input_nodes[0]
        known = self._known[source]
        if len(known) != len(self._wiring.columns[node]):  # it reads along another axis
            return False
        read = module.weight.movedim(1, 0).flatten(1).any(1).numpy() & ~np.isnan(known)
        if _pads_with_zeros(module):
            # Zero is zero at the borders too; any other constant is only inside.
            changed = self._merge(module, read & (known != 0), known)
            read &= known == 0
        else:
            changed = False
        if not read.any():
            return changed
        columns = torch.from_numpy(read)
        constants = torch.from_numpy(known)[columns]
        moved = module.weight.flatten(2).sum(2) if module.weight.dim() > 2 else module.weight
        bias = moved[:, columns] @ constants
        if module.bias is not None:
            module.bias += bias
        elif bool(bias.any()):
            if not self._new_biases:
                return changed
            module.bias = nn.Parameter(bias)
        module.weight[:, columns] = 0
        return True

    @staticmethod
    def _merge(module: nn.Linear | _ConvNd, which: np.ndarray[Any, Any], known: Numbers) -> bool:
        """Let one constant channel stand for all of ``which``: a multiple of it has any value."""
        # Every reader of a value must choose the same one: the largest, where nothing is lost.
        largest = int(np.nanargmax(np.abs(known))) if which.any() else 0
        which = which.copy()
        which[largest] = False
        if not which.any():
            return False
        columns = torch.from_numpy(which)
        scales = torch.from_numpy(known / known[largest])[columns]
        along = (1, -1, *[1] * (module.weight.dim() - 2))
        module.weight[:, largest] += (module.weight[:, columns] * scales.view(along)).sum(1)
        module.weight[:, columns] = 0
        return True

    def _biases(self, node: fx.Node) -> Numbers:
        """A layer's row without weights is its bias; a zero one is followed by folding."""
        module = self._layer(node)
        live = module.weight.flatten(1).any(1)
        bias = torch.zeros(len(live), dtype=torch.float64) if module.bias is None else module.bias
        return torch.where(live, torch.nan, bias).numpy()

    def _layer(self, node: fx.Node) -> nn.Linear | _ConvNd:
        module = self._modules[str(node.target)]
        assert isinstance(module, nn.Linear | _ConvNd)
        return module


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the tensors a node reads, in order and as often as it reads them."""
    found: list[fx.Node] = []

    def note(source: fx.Node) -> fx.Node:
        found.append(source)
        return source

    fx.map_arg((node.args, node.kwargs), note)
    return found


def _pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same"
    return any(module.padding)
