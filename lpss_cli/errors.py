"""The errors that lpss raises on purpose: what is wrong, and what to do about it.

Each of them is printed as two lines and becomes an exit code; any other exception that escapes is a
bug. This module imports nothing, so that every other module can import it.
"""

from __future__ import annotations


class LpssError(Exception):
    """A failure with a remedy.

    Args:
        what: one line that says what is wrong.
        do: one line that says what to do.
    """

    exit_code = 1

    def __init__(self, what: str, do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.do = do

    def __reduce__(self) -> tuple[type[LpssError], tuple[str, str]]:
        return type(self), (self.what, self.do)


class InputError(LpssError, ValueError):
    """The request cannot be served: a bad option, file or value (exit code 2)."""

    exit_code = 2


class RunError(LpssError, RuntimeError):
    """The request was fine but the run failed: NaN loss, an export that differs (exit code 1)."""


class StoppedError(LpssError):
    """A signal ended the run (exit code 128 + the signal's number, as in a shell).

    Args:
        what: one line that says which signal, and when.
        do: one line that says how to resume.
        signal: number of the signal.
    """

    def __init__(self, what: str, do: str = "", signal: int = 2) -> None:
        super().__init__(what, do)
        self.signal = signal
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[type[LpssError], tuple[str, str, int]]:  # type: ignore[override]  # one more argument
        return type(self), (self.what, self.do, self.signal)


def one_line(error: BaseException) -> str:
    """Return ``Class: message`` on one line, for the first line of an error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a hint for a name that is not among the known ones.

    Returns:
        ``"did you mean 'x'? known: …"``, or only the list if no known name is close.
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=3, cutoff=0.5)
    close.sort(key=lambda other: sorted(other) != sorted(name))  # swapped letters come first
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
