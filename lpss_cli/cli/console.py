"""The only printer: results on stdout, for people or as one JSON document; the rest on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.text import Text

# MERGED: Names of layers in tables: on a terminal that is too narrow, long ones lose what tells
# MERGED: least.
# MERGED: The end of ``vit.encoder.layer.11.attention.query.weight`` says more than its front.
# MERGED: Where other
# MERGED: names have the same end, the parts that differ are shown before it:
# MERGED: ``…11.…query.weight``. So no two
# MERGED: names look the same, and one that cannot be shortened so is folded.
_Parts = tuple[str, ...]
# Parts that an end may have: names come from files, and each of their ends takes memory.
_LONGEST_NAME = 20


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


class LayerName:
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


def name_column(names: Sequence[str]) -> list[LayerName]:
    """Return the cells of a column of names, which may come from a file."""
    shown = [plain(name) for name in names]
    groups: dict[_Parts, list[_Parts]] = {}
    for parts in dict.fromkeys(tuple(name.split(".")) for name in shown):
        for start in _starts(parts):
            groups.setdefault(parts[start:], []).append(parts)
    ends = {end: _alike(names) for end, names in groups.items()}
    return [LayerName(name, ends) for name in shown]


def _starts(parts: _Parts) -> range:
    """Return where the ends of a name begin, the longest first."""
    return range(max(1, len(parts) - _LONGEST_NAME), len(parts))


def _alike(names: Sequence[_Parts]) -> _Alike:
    if len(names) == 1:  # by far the most
        return _Alike(1, len(names[0]), len(names[0]))
    return _Alike(len(names), _shared(names), _shared([name[::-1] for name in names]))


def _shared(names: Sequence[_Parts]) -> int:
    """Return how many parts all of them begin with: the first and the last in their order do."""
    least, greatest = min(names), max(names)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((number for number, (one, other) in pairs if one != other), len(least))


# Characters of a text from a file that are shown.
_LONGEST = 2000


class Out:
    """Where a command's words go.

    Args:
        as_json: stdout gets exactly one JSON document and nothing else.
        quiet: no notes, no bars; warnings and errors stay.
        silent: nothing but errors: another process of the run says the rest.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or silent
        self._silent = silent

    @cached_property
    def stderr(self) -> Console:
        """A console on stderr; markup is off, so names from files are printed as they are.

        Always the same one: what it prints goes above a panel that moves.
        """
        return _console(stderr=True)

    @property
    def talks(self) -> bool:
        """Whether the progress of a run is told at all."""
        return not self.quiet and not self.as_json

    @property
    def live(self) -> bool:
        """Whether a panel may move: a person watches stderr."""
        return self.talks and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        """Columns a table may take; what goes to a file or a pipe is not folded."""
        return _console().width

    def show(self, *renderables: RenderableType) -> None:
        """Print a result for people; nothing with ``--json``."""
        if not (self.as_json or self._silent):
            console = _console()
            for item in renderables:
                console.print(item)

    def text(self, text: str) -> None:
        """Print a result as it is, unwrapped and unstyled; nothing with ``--json``."""
        if not (self.as_json or self._silent):
            print(text, flush=True)

    def document(self, content: Any) -> None:
        """Print the JSON document when ``--json`` was given."""
        if self.as_json and not self._silent:
            text = json.dumps(_jsonable(content), indent=2, ensure_ascii=False)
            print(_escaped(text), flush=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a spinner while something takes its time, where a person watches."""
        if not self.live:
            yield
            return
        with self.stderr.status(text):
            yield

    def note(self, text: str) -> None:
        """Say something by the way."""
        if not self.quiet:
            self.stderr.print(plain(text), style="dim", highlight=False)

    def warn(self, text: str) -> None:
        """Say something the user should know."""
        if self._silent:
            return
        self.stderr.print(f"Warning: {plain(text)}", style="yellow", highlight=False)

    def error(self, what: str, do: str) -> None:
        """Print the two lines of an error, and the JSON document of one."""
        console = self.stderr
        console.print(f"Error: {plain(what)}", style="bold red", highlight=False)
        if do:
            console.print(f"  {plain(do)}", highlight=False)
        self.document({"error": what, "do": do})


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    wide = None if stderr or sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, markup=False, emoji=False, soft_wrap=stderr, width=wide)


def plain(text: str) -> str:
    """Make a text from a file safe to print: on one line, of bounded length, as it is spelled.

    Line ends, terminal escapes and characters that change the direction of writing become visible
    instead of being obeyed.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _escaped(document: str) -> str:
    """Escape what a terminal would obey, as JSON spells it; the document stays the same."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)


def _jsonable(content: Any) -> Any:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(k): _jsonable(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_jsonable(v) for v in content]
    return content


# MERGED: Numbers as people read them.
_FRACTIONS = ("accuracy", "balanced_accuracy")


def is_fraction(name: str) -> bool:
    """Whether a metric is a part of 1, which people read in percent."""
    return name in _FRACTIONS


def metric(name: str, value: float) -> str:
    """Return a metric for people: accuracies in percent, the rest with four digits."""
    return f"{value:.2%}" if is_fraction(name) else f"{value:.4g}"


def size(count: int) -> str:
    """Return bytes for people, in units of 1000."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def share(fraction: float) -> str:
    """Return a sparsity in percent, with the digits that tell it from 100 %."""
    digits = 2
    while fraction < 1 and digits < 8 and round(100 * fraction, digits) == 100:
        digits += 1
    return f"{fraction:.{digits}%}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
