"""Parameter names: selected by shell globs, and by what they say about their tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lpss_cli.errors import InputError

if TYPE_CHECKING:
    from lpss_cli.utils.arrays import TensorSpec

_NOT_PRUNED = ("embed", "norm", "token", "position")


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a glob matches, as parameter (``fc1.weight``) or layer (``fc1``)."""
    return [
        name
        for name in names
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
    ]


def resolve_patterns(patterns: Sequence[str], names: Sequence[str], option: str) -> list[str]:
    """Return the names that any of the patterns matches, in the order of ``names``.

    Args:
        patterns: shell globs.
        names: names of parameters.
        option: the option that the patterns come from, for the message.

    Raises:
        InputError: a pattern matches nothing; the message lists the names.
    """
    selected: set[str] = set()
    for pattern in patterns:
        matches = match_names(pattern, names)
        if not matches:
            raise InputError(
                f"{option} {pattern!r} matches no weight", f"the weights are: {', '.join(names)}"
            )
        selected.update(matches)
    return [name for name in names if name in selected]


def is_weight_name(name: str) -> bool:
    """Whether a name is not that of an embedding, norm, token or position."""
    return not any(word in name.lower() for word in _NOT_PRUNED)


def prunable_names(state_dict: Mapping[str, TensorSpec]) -> list[str]:
    """Guess the prunable weights of a state_dict that comes without its network.

    These are the floating-point tensors of two or more dimensions, except those whose names
    contain ``embed``, ``norm``, ``token`` or ``position``.
    """
    return [
        name
        for name, tensor in state_dict.items()
        if tensor.dim() >= 2 and tensor.is_floating_point() and is_weight_name(name)
    ]


def bias_names(state_dict: Mapping[str, TensorSpec], prunable: Collection[str]) -> list[str]:
    """Return the biases of the layers with prunable weights, in the order of the state_dict.

    ``X.bias`` belongs to ``X.weight``, and ``X.in_proj_bias`` to ``X.in_proj_weight``. The biases
    of norms are left out, since the weights of norms are not prunable.
    """
    candidates = {
        f"{name.removesuffix('weight')}bias" for name in prunable if name.endswith("weight")
    }
    return [
        name
        for name, tensor in state_dict.items()
        if name in candidates and tensor.dim() == 1 and tensor.is_floating_point()
    ]
