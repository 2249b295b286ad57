"""Calling a function in a process of its own, which learns of signals from this one alone.

A signal often reaches a whole group of processes, and a process that passed it on would make two
of it, the second of which means at once. So the other process starts with the signals blocked, and
is told of them through a pipe.
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
    """Return the result of a module's function, called in a fresh process.

    The first signal is passed on, and the function decides what it does; a second one kills the
    process. If the function returns a result in spite of a signal, ``pending`` holds the signal.

    Args:
        interrupts: those of this process; signals wait after the call.
        function: takes the ``Interrupts`` of its own process before the arguments. By default a
            signal ends it; after ``defer`` the first one waits in ``pending``.
        arguments: can be pickled, like the result.

    Raises:
        StoppedError: the function was ended by a signal, or raised this itself.
        SignalError: a signal arrived before it began, or a second one.
        RunError: the process was killed.
    """
    # A fresh process, because the peak of a process's memory never goes down again.
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with receiver, sender, ProcessPoolExecutor(1, spawn, _prepare, (receiver,)) as pool:
        future: Future[T] | None = None
        try:
            interrupts.release()
            with block_signals():  # they stay blocked in the other process
                future = pool.submit(_run, function, *arguments)
            result = future.result()
            interrupts.defer()
        except SignalError as first:
            if future is None:
                raise
            result = _pass_on(first, future, sender)
        except BrokenProcessPool:
            raise RunError(
                "the process of a run was killed, perhaps because memory ran out",
                "check the system's log, and run the command again",
            ) from None
    return result


def _pass_on(first: SignalError, future: Future[T], sender: Connection) -> T:
    """Pass a signal on, and wait for the result."""
    try:
        sender.send(first.number)
        return future.result()
    except (BrokenProcessPool, OSError):  # it had not begun
        raise first from None
    except SignalError:
        kill_children()
        raise


def _prepare(receiver: Connection) -> None:
    """Let this process receive the other one's signals, and end with it."""
    die_with_parent()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)
    threading.Thread(target=_listen, args=(receiver,), daemon=True).start()


def _exit(number: int, _frame: object) -> None:
    """End this process, which has not begun its work."""
    os._exit(128 + number)


def _listen(receiver: Connection) -> None:
    """Turn what the other process sends into signals, until it is gone."""
    while True:
        try:
            _thread.interrupt_main(receiver.recv())
        except (EOFError, OSError):
            os._exit(1)


def _run(function: Callable[..., T], *arguments: Any) -> T:
    """Call the function, with this process's signals handled."""
    interrupts = Interrupts()
    for number in SIGNALS:
        if signal.getsignal(number) is _exit:
            signal.signal(number, interrupts.receive)  # never restored: there is one task
    try:
        return function(interrupts, *arguments)
    except SignalError as error:
        name = signal.Signals(error.number).name
        raise StoppedError(f"interrupted by {name}", "", error.number) from None
