"""A checkpoint in numbers: zeros, sparsity and Hoyer's measure, layer by layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.loading import Checkpoint, browse
from lpss_cli.checkpoints.packed import CHOICES, DEFAULT_VALUES
from lpss_cli.reporting.layers import Layer, measure
from lpss_cli.reporting.sizes import Size, bound_of, whole_bound
from lpss_cli.sparsity import layer_info
from lpss_cli.sparsity.patterns import bias_names, prunable_names
from lpss_cli.utils.arrays import count_non_finite

if TYPE_CHECKING:
    from lpss_cli.reporting.flops import Savings
    from lpss_cli.reporting.latency import Latency
    from lpss_cli.sparsity.prunable import Weight


@dataclass(frozen=True)
class Report:
    """One checkpoint in numbers.

    Attributes:
        path: of the file, or the name of a model in memory.
        layers: the prunable weights.
        parameters: number of entries of all tensors, tied ones counted once.
        file_bytes: size of the file.
        meta: the record of the training, without what it says about layers.
        kind: kind of the file, for people.
        bound_bytes: the information bound (``sizes.bound``).
        bound_values: type of the values that it assumes: that of a packed file, else the default.
        not_finite: name → number of entries that are NaN or infinite, of tensors that have some.
        live: what removing dead units saves, if that is known; ``jobs.report`` adds it.
        sizes, latency: of the files that can be written, where they were measured.
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
        """Return the shape of a layer's weight without dead units; None where it is unknown."""
        if self.live is None:
            return None
        return {f"{x.name}.weight": x.shape for x in self.live.after}.get(layer.name)

    @property
    def weights(self) -> int:
        """Number of prunable weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zeros among them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def dead(self) -> int:
        """Number of neurons whose weights are all zero."""
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
        """Mean Hoyer sparsity of the layers, weighted by their number of weights."""
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
            "layers": [{**layer.to_dict(), "sparsity": layer.sparsity} for layer in self.layers],
            "live": self.live and self.live.to_dict(),
            "sizes": [size.to_dict() for size in self.sizes],
            "latency": [asdict(time) for time in self.latency],
            "run": self.meta,
        }


def report(source: Path | Checkpoint) -> Report:
    """Measure a checkpoint of any accepted kind; the code of the network is not needed.

    An artifact lists its prunable weights; for other files they are guessed from names and shapes
    (``patterns.prunable_names``).

    Raises:
        InputError: the file cannot be read.
    """
    checkpoint = source if isinstance(source, Checkpoint) else browse(source)
    specs = checkpoint.specs
    infos = _layer_infos(checkpoint)
    row_dims = {name: info.get("row_dim") or 0 for name, info in infos.items() if name in specs}
    values = packed_values(checkpoint)
    layers: dict[str, Layer] = {}
    not_finite: dict[str, int] = {}
    biases = set(bias_names(specs, row_dims))
    bound = 0.0
    for name, spec in specs.items():
        # Each tensor once, and one at a time: it may be read from the file only now.
        array = checkpoint.array(name)
        if name in row_dims:
            layer = layers[name] = measure(name, array, row_dims[name], infos[name])
            count = layer.not_finite
            bound += bound_of(spec, layer.weights - layer.zeros, values)
        else:
            count = count_non_finite(array)
            bound += whole_bound(spec, values, bias=name in biases)
        del array  # free it before the next one is read
        if count:
            not_finite[name] = count
    return Report(
        path=str(checkpoint.path),
        layers=[layers[name] for name in row_dims],
        parameters=sum(specs[name].numel() for name in _untied_names(checkpoint)),
        file_bytes=checkpoint.file_bytes,
        meta={k: v for k, v in checkpoint.meta.items() if k != "weights"},
        kind=checkpoint.kind,
        bound_bytes=bound,
        bound_values=values,
        not_finite=not_finite,
    )


def packed_values(checkpoint: Checkpoint) -> str:
    """Return the type of the values in a packed file; the default where the file names none."""
    values = checkpoint.about.get("values") if checkpoint.kind == "pack" else None
    return values if isinstance(values, str) and values in CHOICES else DEFAULT_VALUES


def _untied_names(checkpoint: Checkpoint) -> list[str]:
    """Return the names of all tensors, of tied ones the first; a streamed file has none."""
    if checkpoint.stream is not None:
        return list(checkpoint.stream)
    from lpss_cli.sparsity.prunable import without_tied

    return list(without_tied(checkpoint.state_dict))


def weights_of(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return the prunable weights of a checkpoint: as the artifact lists them, else guessed.

    Args:
        checkpoint: one that is not streamed.
    """
    from lpss_cli.sparsity.prunable import Weight

    return {
        name: Weight(name, checkpoint.state_dict[name], info.get("row_dim", 0))
        for name, info in _layer_infos(checkpoint).items()
        if name in checkpoint.state_dict
    }


def exported_facts(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return what exported files carry of what a method noted: its name → weight → value."""
    infos = _layer_infos(checkpoint)
    return {
        fact: {name: info[fact] for name, info in infos.items() if fact in info}
        for fact, declared in layer_info.facts().items()
        if declared.exported and any(fact in info for info in infos.values())
    }


def _layer_infos(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Return what is noted about the prunable weights: name → info, empty for other files."""
    listed = checkpoint.meta.get("weights")
    if isinstance(listed, dict):
        return listed
    specs = checkpoint.specs
    return {n: {} for n in prunable_names({n: specs[n] for n in _untied_names(checkpoint)})}
