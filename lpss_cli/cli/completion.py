"""What a shell may complete. Does not import PyTorch, so that it is instant.

Where nothing is returned the shell completes the names of files, as it does for any program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Completer = Callable[[str], list[str]]


def one_of(values: Callable[[], Sequence[str]]) -> Completer:
    """Complete one of some values."""

    def complete(incomplete: str) -> list[str]:
        """Return the values that begin with what was typed."""
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def several_of(values: Callable[[], Sequence[str]]) -> Completer:
    """Complete the last of several values, separated by commas, none of them twice."""

    def complete(incomplete: str) -> list[str]:
        """Return what was typed with the values that may come next."""
        before, comma, last = incomplete.rpartition(",")
        used = before.split(",")
        left = [value for value in values() if value not in used]
        return [f"{before}{comma}{value}" for value in left if value.startswith(last)]

    return complete
