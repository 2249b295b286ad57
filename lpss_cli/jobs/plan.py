"""What a sparse training would aim at: per layer p, Hoyer's measure and kept weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lpss_cli.errors import InputError
from lpss_cli.sparsity.hoyer_prediction import hoyer_limit, p_for, predicted_hoyer, shape
from lpss_cli.sparsity.layer_targets import layer_budgets
from lpss_cli.sparsity.masks import log_magnitude, select_masks
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.method import Method, make


@dataclass(frozen=True)
class LayerPlan:
    """One prunable weight before training.

    Attributes:
        name: the parameter.
        shape: its shape.
        weights: number of entries.
        fan_in: entries of one row; None where rows are no simple slices.
        p: exponent of its sphere; None off the sphere.
        hoyer: predicted Hoyer of the trained layer without pruning; None where none is made.
        hoyer_limit: the same by the infinite-n closed form, which passes 1 for small p.
        kept: weights of its budget, by the ranking and the weights as they are now.
        hoyer_at_target: predicted Hoyer once all but the budget are zero; None if that is nothing.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    fan_in: int | None
    p: float | None
    hoyer: float | None
    hoyer_limit: float | None
    kept: int
    hoyer_at_target: float | None


@dataclass(frozen=True)
class Plan:
    """The layers of a network, the target and the ranking that divides the budget."""

    source: str
    sparsity: float
    ranking: str
    layers: list[LayerPlan]

    @property
    def weights(self) -> int:
        """Prunable weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights of the budget: ``N - round(s·N)``, fewer where there are more zeros already."""
        return sum(layer.kept for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "source": self.source,
            "sparsity": self.sparsity,
            "ranking": self.ranking,
            "prunable": self.weights,
            "kept": self.kept,
            "layers": [asdict(layer) for layer in self.layers],
        }


def plan(
    source: str,
    weights: Mapping[str, Weight],
    *,
    sparsity: float,
    options: Mapping[str, Any] | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    hoyer: float | None = None,
) -> Plan:
    """Work out per layer what LpSS would aim at, without training.

    Args:
        source: what the weights are, for the title.
        weights: name → weight, in layer order.
        sparsity: target, in [0, 1).
        options: of the method lpss: ``p``, ``off_sphere``, ``ranking``.
        layers: ``PATTERN=SPARSITY`` of layers with a target of their own.
        skip: globs of weights that are not pruned.
        hoyer: wished Hoyer of every layer, in place of ``p``.

    Raises:
        InputError: a pattern matches nothing, an option is out of range, no p reaches ``hoyer``.
    """
    if hoyer is not None and (options or {}).get("p"):
        raise InputError("--hoyer and --p exclude each other", "give the one you wish for")
    if not weights:
        raise InputError(f"{source} holds no prunable weight", "lpss prunes Linear and Conv layers")
    method = make("lpss", options)
    skipped = resolve_patterns(skip, list(weights), "--skip")
    pruned = {name: w for name, w in weights.items() if name not in skipped}
    sizes = {name: w.tensor.numel() for name, w in pruned.items()}
    total = sum(sizes.values())
    check_sparsity(sparsity, total)
    wanted = layer_budgets(layers, sizes, sparsity)
    targets = dict.fromkeys(weights, sparsity) | wanted.sparsities(sizes)
    exponents = _exponents(method, weights, targets, hoyer)
    scores = {name: log_magnitude(w.tensor) for name, w in pruned.items()}
    ranking = method.config.ranking
    own = {name: sizes[name] - zeros for name, zeros in wanted.layer_zeros.items()}
    masks = select_masks(scores, total - wanted.zeros, ranking, own)
    planned = [
        _layer(weight, exponents.get(name), int(masks[name].sum()))
        for name, weight in pruned.items()
    ]
    return Plan(source, sparsity, ranking, planned)


def _exponents(
    method: Method, weights: Mapping[str, Weight], targets: Mapping[str, float], hoyer: float | None
) -> dict[str, float]:
    """Return p of every layer on a sphere: the method's, or the one that gives this Hoyer."""
    fan_ins = {name: w.fan_in for name, w in weights.items()}
    found: dict[str, float] = method.exponents(fan_ins, targets)  # type: ignore[attr-defined]  # LpSS has it
    if hoyer is None:
        return found
    return {name: p_for(hoyer, fan_ins[name] or 0, name) for name in found}


def _layer(weight: Weight, p: float | None, kept: int) -> LayerPlan:
    n, count = weight.fan_in, weight.tensor.numel()
    predicted = limit = at_target = None
    if p is not None and n is not None and p > 1:
        predicted = predicted_hoyer(p, n)
        limit = hoyer_limit(n, shape(p), p)
        at_target = predicted_hoyer(p, n, 1.0 - kept / count) if kept else None
    return LayerPlan(
        weight.name, tuple(weight.tensor.shape), count, n, p, predicted, limit, kept, at_target
    )
