"""The command line in processes of their own, to be sent signals.

Each is forked from a server that has done the imports, so it starts at once. It may pause after a
step of training: it makes a file ``paused``, a file ``waits`` when a signal waits for the step's
end, and goes on when there is a file ``go``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: Seconds that anything may take on a busy machine.
LONGEST = 90.0

SERVER = """
import json, os, signal, sys, time
import torch
import lpss_cli.jobs.compare, lpss_cli.data, lpss_cli.jobs.sparse_training, lpss_cli.jobs.ticket
from lpss_cli.jobs import resume
from lpss_cli.cli import app
from lpss_cli.cli.progress import Printer
torch.set_num_threads(1)
lpss_cli.data.load(lpss_cli.data.DataSpec("digits"))

def begin(order):
    os.setpgid(0, 0)
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(order["environment"])
    for descriptor, name in ((2, order["stderr"]), (1, "stdout")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    resume.SAVE_EVERY = 0.0

    def on_step(self, run):
        if run.step == order["pause"]:
            open("paused", "w").close()
            deadline = time.monotonic() + 60
            while not os.path.exists("go") and time.monotonic() < deadline:
                if signal.getsignal(signal.SIGINT).__self__.pending:
                    open("waits", "w").close()
                time.sleep(0.005)

    if order["pause"] is not None:
        Printer.on_step = on_step
    sys.argv = ["lpss", *order["words"]]
    app.main()

for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.stdin = open(os.devnull)
        begin(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def wait_for(what: Callable[[], Any], said: str = "it") -> None:
    """Wait until something is true; fail after a while."""
    deadline = time.monotonic() + LONGEST
    while not what():
        assert time.monotonic() < deadline, f"{said} did not happen"
        time.sleep(0.01)


class Run:
    """One command in a process, and a group, of its own.

    Args:
        server: where it was forked.
        folder: its working directory.
    """

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        assert server.stdout is not None
        self._server, self.folder, self.pid = server, folder, int(server.stdout.readline())

    def until(self, name: str) -> None:
        """Wait until it has made a file."""
        wait_for((self.folder / name).exists, name)

    def send(self, number: int, everyone: bool = False) -> None:
        """Send it a signal, or its whole group, as a terminal does."""
        (os.killpg if everyone else os.kill)(self.pid, number)

    def go(self) -> None:
        """Let it go on from its pause."""
        (self.folder / "go").touch()

    def code(self) -> int:
        """Wait for its end, killing it if need be: the exit code, or minus a signal."""
        assert self._server.stdout is not None
        timer = threading.Timer(LONGEST, self.kill)
        timer.start()
        try:
            return int(self._server.stdout.readline())
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def err(self) -> str:
        """What it has said so far."""
        return (self.folder / "stderr").read_text()

    @property
    def members(self) -> list[int]:
        """Living processes of its group."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                pid = int(entry.name)
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(state[2]) == self.pid and state[0] != "Z":
                    found.append(pid)
        return found


class Server:
    """Starts runs, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @contextlib.contextmanager
    def run(
        self, folder: Path, *words: object, pause: int | None = None,
        stderr: str = "stderr", environment: dict[str, str] | None = None,
    ) -> Iterator[Run]:  # fmt: skip
        """Start ``lpss WORDS`` in a folder; it is killed when the block ends.

        ``stderr`` is a file, or a terminal, that it writes to.
        """
        for name in ("paused", "waits", "go", "stderr", "stdout"):
            (folder / name).unlink(missing_ok=True)
        order = {
            "folder": str(folder),
            "words": [str(word) for word in words],
            "pause": pause,
            "stderr": stderr,
            "environment": environment or {},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        run = Run(self._process, folder)
        try:
            yield run
        finally:
            run.kill()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server of runs, killed when the block ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "ignore", "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Server(process)
        finally:
            process.kill()
