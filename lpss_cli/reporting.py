"""From a checkpoint to numbers: zeros, sparsity and Hoyer's measure, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.loading import Checkpoint, read
from lpss_cli.packed import DEFAULT_VALUES
from lpss_cli.prediction import TYPICAL_TRAVEL, predicted_hoyer
from lpss_cli.sizes import bound
from lpss_cli.sphere import hoyer
from lpss_cli.weights import Weight, not_finite, prunable_names, untied

_BINS = 40


@dataclass(frozen=True)
class Survivors:
    """The weights of a layer that are not zero.

    Attributes:
        low, high: the ends of the histogram: the smallest and the largest of them.
        counts: how many lie in each of its equal bins.
        centroids: mean of the positive ones, mean of the negative ones; None without any
            (the two numbers of ASNI-II, arXiv:2202.09284).
    """

    low: float
    high: float
    counts: tuple[int, ...]
    centroids: tuple[float | None, float | None]


@dataclass(frozen=True)
class Layer:
    """One prunable weight.

    Attributes:
        name: the parameter.
        shape: its shape.
        weights: number of entries.
        zeros: number of entries exactly zero.
        hoyer: mean Hoyer of its live rows; None where no row has one.
        dead: number of neurons (rows) whose weights are all zero.
        p: the sphere's exponent it was trained on, if any.
        predicted: Hoyer that p, fan-in and the sparsity of the layer let one expect; None off the
            sphere and for p ≤ 1, where nothing is predicted.
        not_finite: number of entries that are NaN or infinite.
        survivors: how the weights that are not zero spread; None where there are none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    hoyer: float | None
    dead: int
    p: float | None = None
    predicted: float | None = None
    not_finite: int = 0
    survivors: Survivors | None = None

    @property
    def sparsity(self) -> float:
        """Zeros / weights."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Report:
    """One checkpoint in numbers.

    ``parameters`` and ``file_bytes`` count everything in it, tied tensors once; ``not_finite`` is
    name → number of entries that are NaN or infinite, of every tensor that has some.
    ``bound_bytes`` is the information bound (``sizes.bound``) with values of type
    ``bound_values``: those of a packed file, else the ones that are packed by default.
    """

    path: str
    layers: list[Layer]
    parameters: int
    file_bytes: int
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = "state_dict"
    bound_bytes: float = 0.0
    bound_values: str = DEFAULT_VALUES
    not_finite: dict[str, int] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Prunable weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def dead(self) -> int:
        """Neurons without a weight."""
        return sum(layer.dead for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Zeros / prunable weights."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def compression(self) -> float:
        """Prunable weights / kept weights."""
        kept = self.weights - self.zeros
        return self.weights / kept if kept else math.inf

    @property
    def hoyer(self) -> float | None:
        """Mean of the layers' Hoyer, weighted by their number of weights."""
        known = [(layer.hoyer, layer.weights) for layer in self.layers if layer.hoyer is not None]
        total = sum(n for _, n in known)
        return sum(h * n for h, n in known) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "file": self.path,
            "file_bytes": self.file_bytes,
            "bound_bytes": self.bound_bytes,
            "bound_values": self.bound_values,
            "parameters": self.parameters,
            "prunable": self.weights,
            "zeros": self.zeros,
            "sparsity": self.sparsity,
            "compression": self.compression if math.isfinite(self.compression) else None,
            "hoyer": self.hoyer,
            "dead": self.dead,
            "not_finite": self.not_finite,
            "layers": [{**asdict(x), "sparsity": x.sparsity} for x in self.layers],
            "run": self.meta,
        }


def measure(
    name: str, tensor: Tensor, row_dim: int = 0, fact: Mapping[str, Any] | None = None
) -> Layer:
    """Count and measure one weight; ``fact`` is what its training noted: ``p``, ``travel``."""
    fact = fact or {}
    if tensor.element_size() == 1:  # PyTorch does not calculate with numbers of 8 bits
        tensor = tensor.float()
    p = fact.get("p")
    measured = hoyer(tensor, row_dim)
    known = measured[measured.isfinite()]
    zeros = int((tensor == 0).sum())
    n = len(tensor.flatten()) // max(1, len(measured))
    predicted = None
    if p is not None and p > 1 and n > 1 and zeros < tensor.numel():
        travel = fact.get("travel") or TYPICAL_TRAVEL
        predicted = predicted_hoyer(p, n, zeros / tensor.numel(), travel)
    rows = tensor.detach().movedim(row_dim, 0).flatten(1)
    return Layer(
        name=name,
        shape=tuple(tensor.shape),
        weights=tensor.numel(),
        zeros=zeros,
        hoyer=float(known.mean()) if len(known) else None,
        dead=int((rows == 0).all(1).sum()),
        p=p,
        predicted=predicted,
        survivors=_survivors(tensor),
        not_finite=not_finite(tensor),
    )


def _survivors(tensor: Tensor) -> Survivors | None:
    values = tensor.detach().float()
    values = values[(values != 0) & values.isfinite()]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.cpu(), _BINS, low, high).long().tolist()
    parts = [values[values > 0], values[values < 0]]
    up, down = (float(part.double().mean()) if len(part) else None for part in parts)
    return Survivors(low, high, tuple(counts), (up, down))


def report(source: Path | Checkpoint) -> Report:
    """Measure a checkpoint of any accepted kind; the network's code is not needed.

    Which weights count comes from the artefact; for other files it is guessed from names and
    shapes (``weights.prunable_names``).

    Raises:
        InputError: the file cannot be read.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read(source)
    state, meta = checkpoint.state_dict, checkpoint.meta
    facts = _facts(checkpoint)
    layers = [
        measure(name, weight.tensor, weight.row_dim or 0, facts[name])
        for name, weight in weights_of(checkpoint).items()
    ]
    packed = checkpoint.kind == "pack"
    values = str(checkpoint.about.get("values")) if packed else DEFAULT_VALUES
    return Report(
        path=str(checkpoint.path),
        layers=layers,
        parameters=sum(state[name].numel() for name in untied(state)),
        file_bytes=checkpoint.file_bytes,
        meta={k: v for k, v in meta.items() if k != "weights"},
        kind=checkpoint.kind,
        bound_bytes=bound(state, facts, values),
        bound_values=values,
        not_finite={name: n for name, t in state.items() if (n := not_finite(t))},
    )


def weights_of(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return a checkpoint's prunable weights: as the artefact lists them, else guessed."""
    return {
        name: Weight(name, checkpoint.state_dict[name], fact.get("row_dim", 0))
        for name, fact in _facts(checkpoint).items()
        if name in checkpoint.state_dict
    }


def exponents_of(checkpoint: Checkpoint) -> dict[str, float]:
    """Return p of each weight that was trained on a sphere, by name."""
    return {name: fact["p"] for name, fact in _facts(checkpoint).items() if "p" in fact}


def _facts(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    listed = checkpoint.meta.get("weights")
    guessed = prunable_names(untied(checkpoint.state_dict))
    return listed if isinstance(listed, dict) else {name: {} for name in guessed}
