"""A function in a process of its own, that hears of signals from this one alone.

A signal often reaches a whole group of processes, and a process that passes it on would make two
of it: the second one means at once. So the other process is born with the signals blocked, and
what it is to know of them comes through a pipe.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from lpss_cli.errors import RunError, StoppedError
from lpss_cli.utils.signals import (
    SIGNALS,
    Interrupts,
    SignalError,
    block_signals,
    die_with_parent,
    kill_children,
)

T = TypeVar("T")


def call(interrupts: Interrupts, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function of a module gives in a fresh process.

    The first signal is passed on, and the function decides what it does; a second one kills the
    process. Where the function gives its result in spite of a signal, ``pending`` tells of it.

    Args:
        interrupts: of this process; signals wait afterwards.
        function: takes the ``Interrupts`` of its own process before the arguments. As they are, a
            signal ends it; with ``defer`` the first one waits in ``pending``.
        arguments: can be pickled, as the result.

    Raises:
        StoppedError: the function was ended by a signal, or says so itself.
        SignalledError: a signal came before it began, or a second one.
        RunError: the process was killed.
    """
    # A fresh process: a peak of memory cannot be lowered again.
    spawn = multiprocessing.get_context("spawn")
    hears, tells = spawn.Pipe(duplex=False)
    with hears, tells, ProcessPoolExecutor(1, spawn, _prepare, (hears,)) as pool:
        future: Future[T] | None = None
        try:
            interrupts.release()
            with block_signals():  # in the other process they stay so
                future = pool.submit(_task, function, *arguments)
            result = future.result()
            interrupts.defer()
        except SignalError as first:
            if future is None:
                raise
            result = _after(first, future, tells)
        except BrokenProcessPool:
            raise RunError(
                "the process of a run was killed, perhaps for want of memory",
                "see what the system says of it, and call it again",
            ) from None
    return result


def _after(first: SignalError, future: Future[T], tells: Connection) -> T:
    """Pass a signal on and wait for what comes of it."""
    try:
        tells.send(first.number)
        return future.result()
    except (BrokenProcessPool, OSError):  # it had not begun
        raise first from None
    except SignalError:
        kill_children()
        raise


def _prepare(hears: Connection) -> None:
    """Let this process hear the other one's signals, and end with it."""
    die_with_parent()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    threading.Thread(target=_listen, args=(hears,), daemon=True).start()


def _leave(number: int, _frame: object) -> None:
    """End this process, which has not begun."""
    os._exit(128 + number)


def _listen(hears: Connection) -> None:
    """Make signals of what the other process tells, until it is gone."""
    while True:
        try:
            _thread.interrupt_main(hears.recv())
        except (EOFError, OSError):
            os._exit(1)


def _task(function: Callable[..., T], *arguments: Any) -> T:
    interrupts = Interrupts()
    for number in SIGNALS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, interrupts.receive)  # for good: there is one task
    try:
        return function(interrupts, *arguments)
    except SignalError as signalled:
        name = signal.Signals(signalled.number).name
        raise StoppedError(f"interrupted by {name}", "", signalled.number) from None
