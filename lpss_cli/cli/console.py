"""What commands print with: results on stdout, for people or as JSON; the rest on stderr.

Nothing else in lpss prints. Here are also the numbers and the names of layers as people read them.
"""

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

# Longest text from a file that is shown, in characters.
_LONGEST = 2000
# Most parts that the end of a layer's name may have: names come from files, and each end takes
# memory.
_LONGEST_NAME = 20
# Metrics that are fractions of 1.
_FRACTIONS = ("accuracy", "balanced_accuracy")


class Out:
    """Prints what a command has to say.

    Args:
        as_json: Print exactly one JSON document on stdout, and nothing else there.
        quiet: Print no notes and no progress; warnings and errors stay.
        silent: Print only errors, because another process of the run prints the rest.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or silent
        self._silent = silent

    @cached_property
    def stderr(self) -> Console:
        """A console on stderr, without markup: names from files are printed as they are.

        It is always the same one, so that what it prints goes above a panel that moves.
        """
        return _console(stderr=True)

    @property
    def shows_progress(self) -> bool:
        """Whether progress is printed at all."""
        return not self.quiet and not self.as_json

    @property
    def is_live(self) -> bool:
        """Whether a panel may move, because a person watches stderr."""
        return self.shows_progress and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        """Columns that a table may take; nothing is folded in a file or a pipe."""
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
        """Show a spinner while something takes its time, if a person watches."""
        if not self.is_live:
            yield
            return
        with self.stderr.status(text):
            yield

    def note(self, text: str) -> None:
        """Print something worth knowing."""
        if not self.quiet:
            self.stderr.print(plain(text), style="dim", highlight=False)

    def warn(self, text: str) -> None:
        """Print something that the user should know."""
        if self._silent:
            return
        self.stderr.print(f"Warning: {plain(text)}", style="yellow", highlight=False)

    def error(self, what: str, do: str) -> None:
        """Print the two lines of an error, or its JSON document."""
        console = self.stderr
        console.print(f"Error: {plain(what)}", style="bold red", highlight=False)
        if do:
            console.print(f"  {plain(do)}", highlight=False)
        self.document({"error": what, "do": do})


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    width = None if stderr or sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, markup=False, emoji=False, soft_wrap=stderr, width=width)


def plain(text: str) -> str:
    """Return a text from a file as it may be printed: on one line, and of bounded length.

    Line ends, terminal escapes and characters that change the direction of writing become visible,
    so that no terminal obeys them.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _escaped(document: str) -> str:
    """Escape what a terminal would obey, as JSON does; the document means the same."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)


def _jsonable(content: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(k): _jsonable(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_jsonable(v) for v in content]
    return content


def is_fraction(name: str) -> bool:
    """Whether a metric is a fraction of 1, which people read in percent."""
    return name in _FRACTIONS


def metric(name: str, value: float) -> str:
    """Return a metric for people: accuracies in percent, other metrics with four digits."""
    return f"{value:.2%}" if is_fraction(name) else f"{value:.4g}"


def size(count: int) -> str:
    """Return a number of bytes for people, in units of 1000."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def share(fraction: float) -> str:
    """Return a sparsity in percent, with the digits that distinguish it from 100 %."""
    digits = 2
    while fraction < 1 and digits < 8 and round(100 * fraction, digits) == 100:
        digits += 1
    return f"{fraction:.{digits}%}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, or a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


# Parts of a layer's name between its dots.
_Parts = tuple[str, ...]


@dataclass(frozen=True)
class _SameEnd:
    """Names that end alike.

    Attributes:
        count: Number of names.
        front, back: Number of parts that all of them begin with, and end with.
    """

    count: int
    front: int
    back: int


class LayerName:
    """The name of a layer in a table, shortened on a terminal that is too narrow.

    The end of ``vit.encoder.layer.11.attention.query.weight`` says more than its front. If other
    names have the same end, the parts that differ are shown before it: ``…11.…query.weight``. So
    no two names look the same; a name that cannot be shortened so is folded. In a file or a pipe
    names are whole.

    Args:
        name: The name as it is printed.
        ends: For some last parts of a name of the column, the names that have them.
    """

    def __init__(self, name: str, ends: Mapping[_Parts, _SameEnd]) -> None:
        self.name = name
        self._ends = ends

    def within(self, width: int) -> str:
        """Return what is shown in so many columns; the whole name if no shorter one fits."""
        from rich.cells import cell_len

        if cell_len(self.name) <= width:
            return self.name
        return next((short for short in self._shortened if cell_len(short) <= width), self.name)

    @cached_property
    def _shortened(self) -> list[str]:
        """The ways to shorten the name, the longest first."""
        parts, shortened = tuple(self.name.split(".")), []
        for start in _starts(parts):
            end = parts[start:]
            same = self._ends[end]
            differing = parts[same.front : len(parts) - same.back]
            if same.count == 1:
                shortened.append("…" + ".".join(end))
            elif differing and same.back > len(end):
                kept = [*differing, "…" + ".".join(end)]
                shortened.append(("…" if same.front else "") + ".".join(kept))
        return shortened

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
    ends = {end: _same_end(members) for end, members in groups.items()}
    return [LayerName(name, ends) for name in shown]


def _starts(parts: _Parts) -> range:
    """Return where the ends of a name begin, the longest end first."""
    return range(max(1, len(parts) - _LONGEST_NAME), len(parts))


def _same_end(names: Sequence[_Parts]) -> _SameEnd:
    if len(names) == 1:  # by far the most
        return _SameEnd(1, len(names[0]), len(names[0]))
    return _SameEnd(len(names), _common(names), _common([name[::-1] for name in names]))


def _common(names: Sequence[_Parts]) -> int:
    """Return how many parts all names begin with: those of the first and the last in order."""
    least, greatest = min(names), max(names)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((index for index, (a, b) in pairs if a != b), len(least))
