"""Shell globs on parameter names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lpss_cli.errors import InputError

if TYPE_CHECKING:
    from lpss_cli.utils.arrays import TensorSpec

_NOT_PRUNED = ("embed", "norm", "token", "position")


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a glob matches, as parameter (``fc1.weight``) or as layer (``fc1``)."""
    return [
        name
        for name in names
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
    ]


def resolve_patterns(patterns: Sequence[str], names: Sequence[str], option: str) -> list[str]:
    """Names matched by any of the patterns, in the order of ``names``.

    Raises:
        InputError: a pattern matches nothing; the message lists the names there are.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = match_names(pattern, names)
        if not hits:
            raise InputError(
                f"{option} {pattern!r} matches no weight", f"the weights are: {', '.join(names)}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def is_weight_name(name: str) -> bool:
    """Whether a name does not speak of embeddings, norms, tokens or positions."""
    return not any(word in name.lower() for word in _NOT_PRUNED)


def prunable_names(state_dict: Mapping[str, TensorSpec]) -> list[str]:
    """Guess the prunable weights of a state_dict that comes without its network.

    Floating-point tensors of two or more dimensions whose names do not speak of embeddings,
    norms, tokens or positions.
    """
    return [
        name
        for name, tensor in state_dict.items()
        if tensor.dim() >= 2 and tensor.is_floating_point() and is_weight_name(name)
    ]


def bias_names(state_dict: Mapping[str, TensorSpec], prunable: Collection[str]) -> list[str]:
    """Return the biases that are added to what prunable weights give, in the state_dict's order.

    ``X.bias`` is that of ``X.weight`` and ``X.in_proj_bias`` that of ``X.in_proj_weight``; norms
    have none of these, for their weights are not prunable.
    """
    known = {f"{name.removesuffix('weight')}bias" for name in prunable if name.endswith("weight")}
    return [
        name
        for name, tensor in state_dict.items()
        if name in known and tensor.dim() == 1 and tensor.is_floating_point()
    ]
