"""The only printer: results on stdout, for people or as one JSON document; the rest on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


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
        """Print a result as it is, unwrapped and unstyled."""
        if not self._silent:
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
