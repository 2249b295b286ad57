"""Layers with a target sparsity of their own, within a target for the whole network.

With N prunable weights and a target s, ``Z = round(s·N)`` of them are zero in the end. A layer of n
weights with a target t of its own gets exactly ``round(t·n)`` of these zeros, and the ranking
divides the rest of Z among the other layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lpss_cli.errors import InputError
from lpss_cli.sparsity.masks import allocate
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.targets import check_sparsity, parse_sparsity, zero_count

_OPTION = "--layer"


@dataclass(frozen=True)
class LayerBudgets:
    """How many zeros there are in a network, and how many in layers with their own target.

    Attributes:
        zeros: number of zeros among all prunable weights.
        layer_zeros: name → number of zeros, for every layer with its own target.
        other_weights: number of prunable weights in the layers without one.
    """

    zeros: int
    layer_zeros: Mapping[str, int] = field(default_factory=dict)
    other_weights: int = 0

    @property
    def other_zeros(self) -> int:
        """Number of zeros in the layers without their own target."""
        return self.zeros - sum(self.layer_zeros.values())

    def sparsities(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Return the target of every layer: its own, or that of the other layers together.

        Returns:
            Name → sparsity; empty if no layer has its own target, since all share one.
        """
        if not self.layer_zeros:
            return {}
        rest = self.other_zeros / self.other_weights if self.other_weights else 0.0
        return {
            name: self.layer_zeros[name] / n if name in self.layer_zeros else rest
            for name, n in sizes.items()
        }

    def notes(self, sizes: Mapping[str, int]) -> list[str]:
        """Describe which layer gets how many zeros, and what is left to the others."""
        if not self.layer_zeros:
            return []
        parts = [f"{name} {zeros:,} of {sizes[name]:,}" for name, zeros in self.layer_zeros.items()]
        parts.append(f"all others {self.other_zeros:,} of {self.other_weights:,}")
        return [f"zeros by layer: {', '.join(parts)}"]

    def kept_weights(
        self, sizes: Mapping[str, int], zeros: int, start: LayerBudgets
    ) -> dict[str, int]:
        """Return how many weights the layers with their own target keep during training.

        All layers have gained the same fraction of their new zeros, up to rounding.

        Args:
            sizes: name → number of weights.
            zeros: number of zeros in all layers together, at present.
            start: the budgets that the run began with.

        Returns:
            Name → number of weights, for every layer with its own target.
        """
        if not self.layer_zeros:
            return {}
        new = [
            max(0, self.layer_zeros[name] - start.layer_zeros[name]) for name in self.layer_zeros
        ]
        new.append(max(0, self.other_zeros - start.other_zeros))
        gained = allocate(max(0, zeros - start.zeros), new, new)
        return {
            name: sizes[name] - start.layer_zeros[name] - count
            for name, count in zip(self.layer_zeros, gained, strict=False)
        }


def check_layer_targets(items: Sequence[str]) -> None:
    """Check the form of layer targets, before the network is known.

    Raises:
        InputError: an item is not ``PATTERN=SPARSITY``, or the sparsity is outside [0, 1).
    """
    for item in items:
        _parse_target(item)


def _parse_target(item: str) -> tuple[str, float]:
    """Return the pattern and the sparsity of a target ``PATTERN=SPARSITY``."""
    pattern, equals, text = item.rpartition("=")
    if not equals or not pattern:
        raise InputError(
            f"{_OPTION} {item!r} does not say which layer gets which sparsity",
            f"write {_OPTION} 'fc1=0.5', {_OPTION} 'layer4.*=95%' or {_OPTION} 'conv1=4x'",
        )
    return pattern, check_sparsity(parse_sparsity(text, _OPTION))


def assign_zeros(items: Sequence[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Count the zeros of every layer that an item matches; later items take precedence.

    Args:
        items: ``PATTERN=SPARSITY``, shell globs on names.
        sizes: name → number of weights, of the layers that are pruned.

    Returns:
        Name → number of zeros.

    Raises:
        InputError: see :func:`check_layer_targets`; or a pattern matches nothing, or a layer would
            lose all its weights.
    """
    zeros: dict[str, int] = {}
    for item in items:
        pattern, sparsity = _parse_target(item)
        for name in resolve_patterns([pattern], list(sizes), _OPTION):
            zeros[name] = zero_count(sizes[name], sparsity)
            if sizes[name] and zeros[name] >= sizes[name]:
                raise InputError(
                    f"{_OPTION} {item!r} leaves none of the {sizes[name]:,} weights of {name}",
                    f"ask for at most {1 - 1 / sizes[name]:.8g} there",
                )
    return {name: zeros[name] for name in sizes if name in zeros}


def implied_sparsity(items: Sequence[str], sizes: Mapping[str, int]) -> float | None:
    """Return the sparsity of the network if the items match every layer, otherwise None.

    Raises:
        InputError: see :func:`assign_zeros`.
    """
    layer_zeros = assign_zeros(items, sizes)
    if not layer_zeros or len(layer_zeros) < len(sizes):
        return None
    return sum(layer_zeros.values()) / sum(sizes.values())


def layer_budgets(items: Sequence[str], sizes: Mapping[str, int], sparsity: float) -> LayerBudgets:
    """Count the zeros of a target for the network and of targets for single layers.

    Args:
        items: ``PATTERN=SPARSITY``.
        sizes: name → number of weights, of the layers that are pruned.
        sparsity: zeros / weights over all of them.

    Raises:
        InputError: see :func:`assign_zeros`; or the other layers cannot meet the target of the
            network. The message names the range of targets that they can meet.
    """
    layer_zeros, total = assign_zeros(items, sizes), sum(sizes.values())
    zeros = zero_count(total, sparsity)
    other_weights = sum(size for name, size in sizes.items() if name not in layer_zeros)
    budgets = LayerBudgets(zeros, layer_zeros, other_weights)
    least = zeros - budgets.other_zeros
    most = least + max(0, other_weights - 1)  # one of them stays, as in any network
    if layer_zeros and not least <= zeros <= most:
        low, high = (_shortest(count, total) for count in (least, most))
        allowed = f"from {low} to {high}" if least < most else low
        raise InputError(
            f"{_OPTION} asks for {least:,} zeros in {len(layer_zeros)} of {len(sizes)} layers, "
            f"which does not fit {zeros:,} zeros in total ({sparsity:.6g} of {total:,})",
            f"give --sparsity {allowed}, or other {_OPTION} targets",
        )
    return budgets


def _shortest(count: int, total: int) -> str:
    """Return the shortest decimal fraction that means exactly ``count`` of ``total`` weights."""
    texts = (f"{count / total:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if zero_count(total, float(text)) == count)


def check_initial_zeros(
    start: LayerBudgets, wanted: LayerBudgets, sizes: Mapping[str, int]
) -> None:
    """Check that no target is below the zeros of the initial checkpoint, which stay zeros.

    Args:
        start: the zeros of the checkpoint.
        wanted: the zeros that are asked for.
        sizes: name → number of weights, of the layers that are pruned.

    Raises:
        InputError: a layer with its own target, or the other layers together, have more zeros.
    """
    for name, zeros in wanted.layer_zeros.items():
        present = start.layer_zeros[name]
        if present > zeros:
            raise InputError(
                f"{name} already has {present:,} zeros, more than the {zeros:,} asked for",
                f"give {_OPTION} '{name}={_shortest(present, sizes[name])}', or more",
            )
    if start.other_zeros > wanted.other_zeros:
        total = sum(sizes.values())
        least = _shortest(start.other_zeros + sum(wanted.layer_zeros.values()), total)
        raise InputError(
            f"the layers without {_OPTION} already have {start.other_zeros:,} zeros, more than the "
            f"{wanted.other_zeros:,} that are left for them",
            f"give --sparsity {least}, or more",
        )
