"""Shell globs on parameter names, and values given per pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from lpss_cli.errors import InputError

T = TypeVar("T")


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


def per_name(
    items: Sequence[str],
    names: Sequence[str],
    option: str,
    parse: Callable[[str], T],
) -> dict[str, T]:
    """Values for names from items ``VALUE`` (all names) and ``PATTERN=VALUE``; later ones win.

    Raises:
        InputError: a pattern matches nothing, or ``parse`` raised ValueError.
    """
    values: dict[str, T] = {}
    for item in items:
        pattern, _, text = item.rpartition("=")
        try:
            value = parse(text)
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"{option} {item!r} is not a number", f"write {option} 1.15 or {option} 'fc*=1.15'"
            ) from None
        values |= dict.fromkeys(resolve([pattern], names, option) if pattern else names, value)
    return values
