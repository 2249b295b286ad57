"""Layers with a sparsity of their own: exact there, while the others meet the whole's target.

With N prunable weights and a target s, ``Z = round(s·N)`` of them are zero in the end. A layer l
of n weights with a target t of its own gets ``round(t·n)`` of these zeros, and the ranking divides
the rest of Z among the other layers.
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
    """Zeros at the end of a run, counted.

    Attributes:
        zeros: zeros of all prunable weights together.
        layer_zeros: name → zeros of every layer with a target of its own.
        other_weights: prunable weights of the layers without one.
    """

    zeros: int
    layer_zeros: Mapping[str, int] = field(default_factory=dict)
    other_weights: int = 0

    @property
    def other_zeros(self) -> int:
        """Zeros that the layers without a target of their own share."""
        return self.zeros - sum(self.layer_zeros.values())

    def sparsities(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Return the target of every layer: its own, else that of the others together.

        Without targets of their own there are none: each layer's is that of the whole.
        """
        if not self.layer_zeros:
            return {}
        rest = self.other_zeros / self.other_weights if self.other_weights else 0.0
        return {
            name: self.layer_zeros[name] / n if name in self.layer_zeros else rest
            for name, n in sizes.items()
        }

    def notes(self, sizes: Mapping[str, int]) -> list[str]:
        """Say what was asked of which layer, and what is left to the others."""
        if not self.layer_zeros:
            return []
        parts = [f"{name} {zeros:,} of {sizes[name]:,}" for name, zeros in self.layer_zeros.items()]
        parts.append(f"all others {self.other_zeros:,} of {self.other_weights:,}")
        return [f"zeros by layer: {', '.join(parts)}"]

    def kept_weights(
        self, sizes: Mapping[str, int], zeros: int, start: LayerBudgets
    ) -> dict[str, int]:
        """Return name → weights that layers with a target of their own keep on the way there.

        Every layer has gone the same part of its way, up to a rounding.

        Args:
            sizes: name → weights.
            zeros: of all layers together, at present.
            start: what the run began with.
        """
        if not self.layer_zeros:
            return {}
        ways = [
            max(0, self.layer_zeros[name] - start.layer_zeros[name]) for name in self.layer_zeros
        ]
        ways.append(max(0, self.other_zeros - start.other_zeros))
        gone = allocate(max(0, zeros - start.zeros), ways, ways)
        return {
            name: sizes[name] - start.layer_zeros[name] - part
            for name, part in zip(self.layer_zeros, gone, strict=False)
        }


def check_layer_targets(items: Sequence[str]) -> None:
    """Refuse what cannot be a target of a layer, before the network is known.

    Raises:
        InputError: an item is not ``PATTERN=SPARSITY``, or the sparsity is outside [0, 1).
    """
    for item in items:
        _split(item)


def _split(item: str) -> tuple[str, float]:
    pattern, equals, text = item.rpartition("=")
    if not equals or not pattern:
        raise InputError(
            f"{_OPTION} {item!r} does not say which layer gets which sparsity",
            f"write {_OPTION} 'fc1=0.5', {_OPTION} 'layer4.*=95%' or {_OPTION} 'conv1=4x'",
        )
    return pattern, check_sparsity(parse_sparsity(text, _OPTION))


def assign_zeros(items: Sequence[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return name → zeros of every layer that an item names; later items win.

    Args:
        items: ``PATTERN=SPARSITY``, shell globs on names.
        sizes: name → weights, of the layers that are pruned.

    Raises:
        InputError: see :func:`check`; a pattern matches nothing, or a layer would lose all.
    """
    zeros: dict[str, int] = {}
    for item in items:
        pattern, sparsity = _split(item)
        for name in resolve_patterns([pattern], list(sizes), _OPTION):
            zeros[name] = zero_count(sizes[name], sparsity)
            if sizes[name] and zeros[name] >= sizes[name]:
                raise InputError(
                    f"{_OPTION} {item!r} leaves none of the {sizes[name]:,} weights of {name}",
                    f"ask for at most {1 - 1 / sizes[name]:.8g} there",
                )
    return {name: zeros[name] for name in sizes if name in zeros}


def implied_sparsity(items: Sequence[str], sizes: Mapping[str, int]) -> float | None:
    """Return the sparsity of the whole where the items name every layer; None where they do not.

    Raises:
        InputError: see :func:`assign`.
    """
    own = assign_zeros(items, sizes)
    if not own or len(own) < len(sizes):
        return None
    return sum(own.values()) / sum(sizes.values())


def layer_budgets(items: Sequence[str], sizes: Mapping[str, int], sparsity: float) -> LayerBudgets:
    """Count the zeros of a target and of the layers with one of their own.

    Args:
        items: ``PATTERN=SPARSITY``.
        sizes: name → weights, of the layers that are pruned.
        sparsity: zeros / weights of all of them.

    Raises:
        InputError: see :func:`assign`; or the whole cannot be met by what the items leave, and the
            range that can.
    """
    own, total = assign_zeros(items, sizes), sum(sizes.values())
    zeros, others = zero_count(total, sparsity), sum(n for x, n in sizes.items() if x not in own)
    found = LayerBudgets(zeros, own, others)
    least = zeros - found.other_zeros
    most = least + max(0, others - 1)  # one weight of the others stays, as of any network
    if own and not least <= zeros <= most:
        low, high = (_shortest(count, total) for count in (least, most))
        allowed = f"from {low} to {high}" if least < most else low
        raise InputError(
            f"{_OPTION} asks for {least:,} zeros in {len(own)} of {len(sizes)} layers, which "
            f"{zeros:,} zeros in all ({sparsity:.6g} of {total:,}) do not fit",
            f"give --sparsity {allowed}, or other {_OPTION} targets",
        )
    return found


def _shortest(count: int, total: int) -> str:
    """Return the shortest fraction that asks for exactly ``count`` of ``total`` weights."""
    texts = (f"{count / total:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if zero_count(total, float(text)) == count)


def check_initial_zeros(
    start: LayerBudgets, wanted: LayerBudgets, sizes: Mapping[str, int]
) -> None:
    """Refuse targets below the zeros that a checkpoint brings, which stay zeros.

    Raises:
        InputError: a layer with a target of its own, or the others together, have more already.
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
