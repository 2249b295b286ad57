"""Signals that ask a run to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

Handlers are installed only inside :func:`handle_signals`, in the main thread, and never for a
signal that is already ignored (``nohup``). Inside the block a signal raises :class:`SignalError`,
unless the block has asked for the first one to wait.
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

#: Looked up by name, since not every system has all of them.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SignalError(BaseException):
    """A signal ends what is being done; no ``except Exception`` on the way catches it.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """The signals that have arrived, and whether the first of them waits.

    Attributes:
        pending: number of the last signal, None before the first.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = self._closed = False

    def defer(self) -> None:
        """Let the first signal from now on wait in ``pending``; the second one does not wait."""
        self._deferred = True

    def release(self) -> None:
        """Let no signal wait any longer.

        Raises:
            SignalError: one was waiting.
        """
        self._deferred = False
        if self.pending is not None:
            raise SignalError(self.pending)

    def close(self) -> None:
        """Act on no further signal: little is left to do."""
        self._closed = True

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            SignalError: it does not have to wait.
        """
        first, self.pending = self.pending is None, number
        if not (self._closed or (self._deferred and first)):
            raise SignalError(number)


@contextlib.contextmanager
def handle_signals(final: bool = False) -> Iterator[Interrupts]:
    """Handle the signals inside the block, and restore the previous handlers after it.

    Nothing is installed outside of the main thread, where Python has no handlers.

    Args:
        final: an error in the block ends the process; signals are ignored from then on.
    """
    interrupts, previous = Interrupts(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # None: not installed by Python, which therefore could not restore it.
            if handler not in (signal.SIG_IGN, None):
                previous[number] = handler
                signal.signal(number, interrupts.receive)
    try:
        yield interrupts
    except BaseException:
        if final:
            ignore_signals()
            previous.clear()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Hold the signals back inside the block; processes started in it never receive them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore the signals from now on: the process is about to end and to report why."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Leave the signals to the parent process, and die with it, however it ends.

    To be called first in a process made by ``multiprocessing``. Signals to a whole process group
    reach it too, and it must not fail before the parent has saved what it wants to keep. On
    systems other than Linux only PyTorch's own loop notices the end of the parent.
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
        if parent is not None and parent.pid != os.getppid():  # it died before the call
            os._exit(1)


def kill_children() -> None:
    """Kill the processes that ``multiprocessing`` started here, whatever they are doing.

    Those that read data ignore signals, and Python would wait for them when it exits.
    """
    main = threading.current_thread() is threading.main_thread()
    posix = hasattr(signal, "SIGCHLD")
    # PyTorch's handler would raise an error for every reader that is killed.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main and posix else None
    for child in multiprocessing.active_children():
        child.kill()
        child.join(timeout=5.0)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
