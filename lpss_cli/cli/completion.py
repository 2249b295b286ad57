"""What a shell may complete: the values that options know. Imports no torch, so it is instant.

Where nothing is returned the shell completes the names of files, as it does for any program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lpss_cli.data.spec import KNOWN as DATA
from lpss_cli.training import method as methods

#: What ``--device`` may be beside a numbered GPU.
DEVICES = ("auto", "cpu", "cuda", "mps")
# The packaged recipes lie there; their reader imports torch.
_RECIPES = Path(__file__).parents[1] / "jobs" / "recipes"

Completer = Callable[[str], list[str]]


def among(names: Sequence[str]) -> Completer:
    """Complete one of some names."""

    def complete(incomplete: str) -> list[str]:
        """Return the names that begin so."""
        return [name for name in names if name.startswith(incomplete)]

    return complete


def listed(names: Callable[[], Sequence[str]]) -> Completer:
    """Complete the last of several names, by comma, none of them twice."""

    def complete(incomplete: str) -> list[str]:
        """Return what was typed with the names that may come next."""
        before, comma, last = incomplete.rpartition(",")
        used = before.split(",")
        left = [name for name in names() if name not in used]
        return [f"{before}{comma}{name}" for name in left if name.startswith(last)]

    return complete


def method(incomplete: str) -> list[str]:
    """Complete the name of a method."""
    return among(tuple(methods.registry()))(incomplete)


def data(incomplete: str) -> list[str]:
    """Complete the name of a known data set."""
    return among(DATA)(incomplete)


def arch(incomplete: str) -> list[str]:
    """Complete the name of a network: lpss's own and torchvision's."""
    from lpss_cli.models.signatures import table

    return among(("mlp:", *(signature.arch for signature in table()), "timm:"))(incomplete)


def recipe(incomplete: str) -> list[str]:
    """Complete the name of a packaged recipe."""
    return among(sorted(path.stem for path in _RECIPES.glob("*.toml")))(incomplete)


#: Several methods, by comma.
some_methods = listed(lambda: tuple(methods.registry()))
