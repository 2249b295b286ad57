"""Names of layers in tables: on a terminal that is too narrow, long ones lose what tells least.

The end of ``vit.encoder.layer.11.attention.query.weight`` says more than its front. Where other
names have the same end, the parts that differ are shown before it: ``…11.…query.weight``. So no two
names look the same, and one that cannot be shortened so is folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from lpss_cli.cli.out import plain

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.text import Text

_Parts = tuple[str, ...]
# Parts that an end may have: names come from files, and each of their ends takes memory.
_LONGEST = 20


@dataclass(frozen=True)
class _Alike:
    """Names that end alike.

    Attributes:
        count: how many.
        front, back: how many parts all of them begin with, and end with.
    """

    count: int
    front: int
    back: int


class Name:
    """A cell of a table: a name, as much of it as fits; whole in a file or a pipe.

    Args:
        name: as it is printed.
        ends: some last parts of a name of the column → the names that have them.
    """

    def __init__(self, name: str, ends: Mapping[_Parts, _Alike]) -> None:
        self.name = name
        self._ends = ends

    def within(self, width: int) -> str:
        """Return what is shown in so many columns: the whole name where nothing shorter will do."""
        from rich.cells import cell_len

        if cell_len(self.name) <= width:
            return self.name
        return next((short for short in self._shortened if cell_len(short) <= width), self.name)

    @cached_property
    def _shortened(self) -> list[str]:
        """The ways to shorten the name, the longest end first."""
        parts, found = tuple(self.name.split(".")), []
        for start in _starts(parts):
            end = parts[start:]
            alike = self._ends[end]
            differing = parts[alike.front : len(parts) - alike.back]
            if alike.count == 1:
                found.append("…" + ".".join(end))
            elif differing and alike.back > len(end):
                kept = [*differing, "…" + ".".join(end)]
                found.append(("…" if alike.front else "") + ".".join(kept))
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield the text that the table prints."""
        from rich.text import Text

        shown = self.within(options.max_width) if console.is_terminal else self.name
        yield Text(shown, overflow="fold")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the fewest and the most columns that the name can take."""
        from rich.cells import cell_len
        from rich.measure import Measurement

        return Measurement(1, max(1, cell_len(self.name)))


def column(names: Sequence[str]) -> list[Name]:
    """Return the cells of a column of names, which may come from a file."""
    shown = [plain(name) for name in names]
    groups: dict[_Parts, list[_Parts]] = {}
    for parts in dict.fromkeys(tuple(name.split(".")) for name in shown):
        for start in _starts(parts):
            groups.setdefault(parts[start:], []).append(parts)
    ends = {end: _alike(names) for end, names in groups.items()}
    return [Name(name, ends) for name in shown]


def _starts(parts: _Parts) -> range:
    """Return where the ends of a name begin, the longest first."""
    return range(max(1, len(parts) - _LONGEST), len(parts))


def _alike(names: Sequence[_Parts]) -> _Alike:
    if len(names) == 1:  # by far the most
        return _Alike(1, len(names[0]), len(names[0]))
    return _Alike(len(names), _shared(names), _shared([name[::-1] for name in names]))


def _shared(names: Sequence[_Parts]) -> int:
    """Return how many parts all of them begin with: the first and the last in their order do."""
    least, greatest = min(names), max(names)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((number for number, (one, other) in pairs if one != other), len(least))
