"""Which channels of a traced network hang together: the map that a compaction works on.

Every value of the graph has channels along one axis. A channel that passes through an activation
or a pooling stays the same channel; an addition ties the channels of its operands; only a linear
layer or a convolution makes new ones. What is tied can only be removed together.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

from lpss_cli.exports.channels import Channels, Indices, as_list, kind_of, shape_of


@dataclass
class Wiring:
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


def wire(traced: fx.GraphModule) -> Wiring:
    """Follow the channels through a graph whose nodes know their shapes (``ShapeProp``).

    Reshapes that keep the batch and join the rest must have been written as ``flatten(x, 1)``
    (:func:`write_flattens`): their sizes change with the channels.
    """
    wiring = Wiring()
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
    wiring: Wiring,
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


def _columns(module: nn.Module, source: Channels, axis: int, wiring: Wiring) -> Indices:
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
