"""Signals that ask a run to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

Handlers are installed only inside :func:`listening`, in the main thread, and never where a signal
is ignored already (``nohup``). In the block a signal raises :class:`SignalledError`, unless the
block has asked for the first one to wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

#: By name: not every system has them all.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SignalError(BaseException):
    """A signal ends what is being done; no ``except Exception`` on the way holds it up.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """What signals have come, and whether the first of them waits.

    Attributes:
        pending: number of the last signal, None before the first.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = self._closed = False

    def defer(self) -> None:
        """Let the first signal from now on wait in ``pending``; the second one does not."""
        self._deferred = True

    def release(self) -> None:
        """Let no signal wait any longer.

        Raises:
            SignalledError: one was waiting.
        """
        self._deferred = False
        if self.pending is not None:
            raise SignalError(self.pending)

    def close(self) -> None:
        """Take no further signal: what is left to do is short."""
        self._closed = True

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Take a signal, as its handler.

        Raises:
            SignalledError: it need not wait.
        """
        first, self.pending = self.pending is None, number
        if not (self._closed or (self._deferred and first)):
            raise SignalError(number)


@contextlib.contextmanager
def handle_signals(final: bool = False) -> Iterator[Interrupts]:
    """Take the signals inside the block; afterwards what was there before takes them again.

    Outside of the main thread, where Python has no handlers, nothing is installed.

    Args:
        final: an error in the block ends the process; signals are ignored from there on.
    """
    interrupts, before = Interrupts(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            found = signal.getsignal(number)
            # None: installed by something other than Python, which it could not put back.
            if found not in (signal.SIG_IGN, None):
                before[number] = found
                signal.signal(number, interrupts.receive)
    try:
        yield interrupts
    except BaseException:
        if final:
            ignore_signals()
            before.clear()
        raise
    finally:
        for number, found in before.items():
            signal.signal(number, found)


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Hold the signals back inside the block; processes started in it never get them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore the signals from here on: the process is about to end, and says so before."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Leave the signals to the parent process, and die with it, however it ends.

    For the first lines of a process made by ``multiprocessing``. Signals to a whole group of
    processes reach it too, and it must not fail before the parent has saved what it wants to keep.
    On systems other than Linux the parent's end is noticed by PyTorch's own loop alone.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Let this process, made by ``multiprocessing``, die with its parent, however that ends.

    Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():  # it was dead before the call
            os._exit(1)


def kill_children() -> None:
    """End the processes that ``multiprocessing`` started here, at once and whatever they do.

    Those that read data ignore signals, and Python's own end would wait for them.
    """
    main = threading.current_thread() is threading.main_thread()
    posix = hasattr(signal, "SIGCHLD")
    # PyTorch's handler would raise an error for every reader that is killed.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main and posix else None
    for child in multiprocessing.active_children():
        child.kill()
        child.join(timeout=5.0)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
