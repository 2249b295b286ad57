"""Shell globs on parameter names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lpss_cli.errors import InputError

_NOT_PRUNED = ("embed", "norm", "token", "position")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a glob matches, as parameter (``fc1.weight``) or as layer (``fc1``)."""
    return [
        name
        for name in names
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
    ]


def resolve(patterns: Sequence[str], names: Sequence[str], option: str) -> list[str]:
    """Names matched by any of the patterns, in the order of ``names``.

    Raises:
        InputError: a pattern matches nothing; the message lists the names there are.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = matching(pattern, names)
        if not hits:
            raise InputError(
                f"{option} {pattern!r} matches no weight", f"the weights are: {', '.join(names)}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def speaks_of_weights(name: str) -> bool:
    """Whether a name does not speak of embeddings, norms, tokens or positions."""
    return not any(word in name.lower() for word in _NOT_PRUNED)
