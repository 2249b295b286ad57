"""From a checkpoint to numbers: zeros, sparsity and Hoyer's measure, layer by layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.loading import Checkpoint, browse
from lpss_cli.checkpoints.packed import CHOICES, DEFAULT_VALUES
from lpss_cli.report.layers import Layer, measure
from lpss_cli.report.sizes import Size, bound_of, whole_bound
from lpss_cli.sparsity.patterns import bias_names, prunable_names
from lpss_cli.utils.arrays import count_non_finite

if TYPE_CHECKING:
    from lpss_cli.report.flops import Savings
    from lpss_cli.report.latency import Latency
    from lpss_cli.sparsity.prunable import Weight


@dataclass(frozen=True)
class Report:
    """One checkpoint in numbers.

    ``parameters`` and ``file_bytes`` count everything in it, tied tensors once; ``not_finite`` is
    name → number of entries that are NaN or infinite, of every tensor that has some.
    ``bound_bytes`` is the information bound (``sizes.bound``) with values of type
    ``bound_values``: those of a packed file, else the ones that are packed by default.
    ``live`` is what removing dead units saves, ``sizes`` and ``latency`` are those of its files;
    ``weighing`` adds them.
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
    live: Savings | None = None
    sizes: tuple[Size, ...] = ()
    latency: tuple[Latency, ...] = ()

    def live_shape(self, layer: Layer) -> tuple[int, ...] | None:
        """Return the shape of a layer's weight without dead units; None where it is not known."""
        if self.live is None:
            return None
        return {f"{x.name}.weight": x.shape for x in self.live.after}.get(layer.name)

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
            "live": self.live and self.live.to_dict(),
            "sizes": [size.to_dict() for size in self.sizes],
            "latency": [asdict(time) for time in self.latency],
            "run": self.meta,
        }


def report(source: Path | Checkpoint) -> Report:
    """Measure a checkpoint of any accepted kind; the network's code is not needed.

    Which weights count comes from the artefact; for other files it is guessed from names and
    shapes (``forms.prunable_names``).

    Raises:
        InputError: the file cannot be read.
    """
    checkpoint = source if isinstance(source, Checkpoint) else browse(source)
    forms, meta = checkpoint.forms, checkpoint.meta
    facts = _facts(checkpoint)
    row_dims = {name: fact.get("row_dim") or 0 for name, fact in facts.items() if name in forms}
    values = packed_values(checkpoint)
    layers: dict[str, Layer] = {}
    broken: dict[str, int] = {}
    biases = set(bias_names(forms, row_dims))
    bound = 0.0
    for name, form in forms.items():
        # Once each, and one at a time: it may be read from the file only now.
        array = checkpoint.array(name)
        if name in row_dims:
            layer = layers[name] = measure(name, array, row_dims[name], facts[name])
            bad = layer.not_finite
            bound += bound_of(form, layer.weights - layer.zeros, values)
        else:
            bad = count_non_finite(array)
            bound += whole_bound(form, values, bias=name in biases)
        del array  # before the next one is there
        if bad:
            broken[name] = bad
    return Report(
        path=str(checkpoint.path),
        layers=[layers[name] for name in row_dims],
        parameters=sum(forms[name].numel() for name in _own_names(checkpoint)),
        file_bytes=checkpoint.file_bytes,
        meta={k: v for k, v in meta.items() if k != "weights"},
        kind=checkpoint.kind,
        bound_bytes=bound,
        bound_values=values,
        not_finite=broken,
    )


def packed_values(checkpoint: Checkpoint) -> str:
    """Return the type of a packed file's values; the default one where the file names none."""
    told = checkpoint.about.get("values") if checkpoint.kind == "pack" else None
    return told if isinstance(told, str) and told in CHOICES else DEFAULT_VALUES


def _own_names(checkpoint: Checkpoint) -> list[str]:
    """Return the names of all tensors, tied ones once; a streamed file has no tied ones."""
    if checkpoint.stream is not None:
        return list(checkpoint.stream)
    from lpss_cli.sparsity.prunable import without_tied

    return list(without_tied(checkpoint.state_dict))


def weights_of(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return a checkpoint's prunable weights: as the artefact lists them, else guessed.

    Args:
        checkpoint: one that is not streamed.
    """
    from lpss_cli.sparsity.prunable import Weight

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
    if isinstance(listed, dict):
        return listed
    forms = checkpoint.forms
    return {n: {} for n in prunable_names({name: forms[name] for name in _own_names(checkpoint)})}
