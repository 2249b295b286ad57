"""Signals: the step is finished, the state is saved, and the run goes on to the same bits."""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import helpers
import pytest
import torch
from faults import lpss
from forking import serving, wait_for

import lpss_cli
from lpss_cli.checkpoints import artifact, loading
from lpss_cli.checkpoints.training_state import paths_of
from lpss_cli.errors import InputError, StoppedError
from lpss_cli.jobs import compare, training_job
from lpss_cli.jobs import ticket as tickets
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.utils import signals as interrupts
from lpss_cli.utils import subprocesses

pytestmark = [
    pytest.mark.usefixtures("noticed_signals"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="these signals are POSIX's"),
    # Python 3.12 warns that forking a process with threads may deadlock; the workers only read.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
# 5 steps an epoch.
TRAIN = ("train", "--arch", "mlp:64-8-10", "--epochs", "4", "--batch-size", "256", "--out", "a.pt")
# Data that draw from every generator there is whenever an example is read.
FACTORY = """
import random
import numpy as np
import torch

class Noisy:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        x = torch.full((6,), float(i % 3)) + torch.randn(6)
        return x + random.gauss(0, 1) + float(np.random.randn()), i % 3

def make():
    return {"train": Noisy(96), "test": Noisy(24), "classes": ["a", "b", "c"]}
"""


@pytest.fixture(scope="module")
def server():
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("data.py").write_text(FACTORY)
    return tmp_path


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What ``TRAIN`` gives when nothing happens."""
    path = tmp_path_factory.mktemp("straight") / "straight.pt"
    code, _, err = lpss(*TRAIN[:-1], path, "--quiet")
    assert code == 0, err
    return path


def same_bits(a, b):
    a, b = loading.read(Path(a)), loading.read(Path(b))
    assert a.state_dict.keys() == b.state_dict.keys()
    for name, tensor in a.state_dict.items():
        assert torch.equal(tensor, b.state_dict[name]), name
    losses = [[epoch["loss"] for epoch in x.meta["history"]] for x in (a, b)]
    assert losses[0] == losses[1]
    assert a.meta["metrics"] == b.meta["metrics"]


def goes_on(err):
    """Run the command that the last line of an error names."""
    what, do = err.splitlines()[-2:]
    assert what.startswith("Error: interrupted by SIG")
    assert "Traceback" not in err
    assert do.startswith("  resume with: lpss ")
    code, _, err = lpss(*shlex.split(do.partition("lpss ")[2]), "--quiet")
    assert code == 0, err


# --- signals from outside ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_state_and_says_how_to_go_on(server, straight, here, name):
    number = getattr(signal, name)
    with server.run(here, *TRAIN, pause=7) as run:
        run.until("paused")
        run.send(number)
        run.go()
        assert run.code() == 128 + number
        err = run.err
    state = torch.load("a.pt.partial", weights_only=True)["state"]
    assert (state["step"], state["epoch"]) == (7, 1)
    assert not Path("a.pt").exists()
    what, do = err.splitlines()[-2:]
    assert what.endswith(f"by {name} after step 7 of 20: its state is in a.pt.partial")
    assert do == f"  resume with: lpss {shlex.join(TRAIN)} --resume"
    goes_on(err)
    same_bits(straight, "a.pt")
    assert not [path for path in paths_of(Path("a.pt")) if path.exists()]
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_a_second_signal_stops_at_once_and_the_earlier_state_stays(server, here):
    with server.run(here, *TRAIN, pause=7) as run:
        run.until("paused")
        before = Path("a.pt.partial").read_bytes()
        run.send(signal.SIGINT)
        run.until("waits")
        run.send(signal.SIGINT)
        assert run.code() == 130
        assert "by SIGINT a second time, at once" in run.err
        err = run.err
    assert Path("a.pt.partial").read_bytes() == before
    assert torch.load("a.pt.partial", weights_only=True)["state"]["step"] == 5
    goes_on(err)


def test_before_training_it_stops_at_once(server, here):
    waiting = "import time, pathlib\npathlib.Path('paused').touch()\ntime.sleep(60)\n"
    Path("slow.py").write_text(waiting + "def make(): pass\n")
    with server.run(here, "train", "--data", "slow.py:make") as run:
        run.until("paused")
        run.send(signal.SIGINT)
        assert run.code() == 130
        assert run.err.splitlines()[-2:] == ["Error: interrupted", "  nothing was saved"]
        assert "Traceback" not in run.err
    assert not [path for path in here.iterdir() if path.suffix in (".pt", ".partial")]


NOISY = ("train", "--data", "data.py:make", "--arch", "mlp:6-5-3", "--epochs", "3",
         "--batch-size", "16", "--workers", "2", "--out", "a.pt")  # fmt: skip


def test_a_signal_to_the_whole_group_leaves_the_readers_to_the_run(server, here):
    """What a terminal and a service manager do: no reader may fail the step that is finished."""
    with server.run(here, *NOISY, pause=8) as run:
        run.until("paused")
        assert len(run.members) == 3
        run.send(signal.SIGTERM, everyone=True)
        run.go()
        assert run.code() == 143
        assert run.err.splitlines()[-2].endswith("after step 8 of 18: its state is in a.pt.partial")
        assert "Traceback" not in run.err
        wait_for(lambda: not run.members, "the end of the readers")


def test_a_killed_run_leaves_no_readers_and_goes_on(server, here):
    with server.run(here, *NOISY, pause=8) as run:
        run.until("paused")
        assert len(run.members) == 3
        run.send(signal.SIGKILL)
        assert run.code() == -signal.SIGKILL
        wait_for(lambda: not run.members, "the end of the readers")
    assert torch.load("a.pt.partial", weights_only=True)["state"]["step"] == 6
    for words in ((*NOISY, "--resume"), (*NOISY[:-1], "straight.pt")):
        code, _, err = lpss(*words, "--quiet")
        assert code == 0, err
    same_bits("straight.pt", "a.pt")


# Waits for a file after so many reads of examples, if it is to.
PAUSES = "import os\nimport time\nreads = 0\n" + FACTORY.replace(
    "        x = torch",
    """        global reads
        reads += 1
        if os.path.exists("wait") and reads == int(open("wait").read()):
            open("paused", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
        x = torch""",
)


def test_a_comparison_goes_on_in_the_middle_of_a_run(server, here, monkeypatch):
    """A signal, then SIGKILL; each run has a process of its own, and it ends with the other one."""
    Path("data.py").write_text(PAUSES)
    words = ("compare", "--methods", "rigl", "--sparsities", "0.5", "--seeds", "1", "--no-tune",
             "--data", "data.py:make", "--arch", "mlp:6-5-3", "--epochs", "3", "--batch-size", "16",
             "--checkpoint-steps", "2", "--out-dir", "c")  # fmt: skip
    request = Request(data="data.py:make", arch="mlp:6-5-3", epochs=3, batch_size=16)
    what = compare.Comparison(("rigl",), (0.5,), seeds=1, tune=False)

    def both(folder, methods=what):
        """In this process, and to the end."""
        with monkeypatch.context() as patch:
            patch.setattr(subprocesses, "call", helpers.here)
            return compare.compare(methods, request, folder, lambda _: None)

    straight = both(Path("straight"))
    both(Path("c"), replace(what, methods=("dense",)))
    for reads, signalled in ((150, signal.SIGTERM), (90, signal.SIGKILL)):
        Path("wait").write_text(str(reads))
        with server.run(here, *words) as run:
            run.until("paused")
            assert len(run.members) > 1
            run.send(signalled, everyone=signalled == signal.SIGTERM)
            if signalled == signal.SIGTERM:
                time.sleep(0.5)
                run.go()
                assert run.code() == 143
                said, do = run.err.splitlines()[-2:]
                assert said.startswith("Error: interrupted by SIGTERM after step ")
                assert "of 18: its state is in c/running/rigl-at-0.5-seed-0-" in said
                assert said.endswith(".pt.partial; 1 finished run is in c/results.json")
                assert do == f"  resume with: lpss {shlex.join(words)}"
                assert "Traceback" not in run.err
            assert signalled == signal.SIGTERM or run.code() == -signal.SIGKILL
            wait_for(lambda: not run.members, "the end of its process")
        states = sorted(path.name for path in Path("c/running").glob("[!.]*"))
        assert [name.partition(".pt")[2] for name in states] == [".partial", ".partial.old"]
    Path("wait").unlink()
    again = both(Path("c"))
    assert [row["mean"] for row in again] == [row["mean"] for row in straight]
    assert again[1]["hoyer"] == straight[1]["hoyer"]
    assert [row["peak_bytes"] is None for row in again] == [False, True]
    assert sorted(os.listdir("c")) == ["results.json"]


# --- signals at chosen points, in this process ---------------------------------------------------


class Signaller(JobCallback):
    """Sends a signal after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number, self.before = step, number, []

    def on_step(self, run):
        if run.step == self.step:
            signal.raise_signal(self.number)

    def on_before(self, metrics, primary):
        self.before.append(metrics)


def noisy(out, **more):
    options = {"epochs": 5, "batch_size": 16, "arch": "mlp:6-5-3", "data": "data.py:make"}
    return Request(Path(out), **{**options, "sparsity": 0.5, "command": "lpss train", **more})


def interrupted_at(steps, method, workers):
    """Stop a run after each of the steps, and go on every time; 30 steps, 6 an epoch."""
    more = {"method": method, "data_overrides": {"workers": workers}}
    training_job.train(noisy("straight.pt", **more))
    for step in steps:
        with pytest.raises(StoppedError, match=f"after step {step} of 30") as error:
            training_job.train(noisy("a.pt", **more, resume=step != steps[0]), Signaller(step))
        assert error.value.exit_code == 143
    training_job.train(noisy("a.pt", **more, resume=True))
    same_bits("straight.pt", "a.pt")


every_kind = pytest.mark.parametrize(
    ("method", "workers"),
    [(method, workers) for method in ("lpss", "gsm", "rigl", "lottery") for workers in (0, 2)],
)


@every_kind
def test_a_run_interrupted_anywhere_gives_the_same_bits(method, workers):
    drawn = sorted(random.Random(f"{method} {workers}").sample(range(7, 30), 2))
    # The ends of an epoch and of the run, too; starting readers takes most of the time.
    interrupted_at([6, *drawn, 30] if not workers else [drawn[0], 30], method, workers)


@pytest.mark.slow
@every_kind
def test_a_run_interrupted_at_fifty_points_gives_the_same_bits(method, workers):
    for part in range(5):
        steps = sorted(random.Random(part).sample(range(1, 31), 10))
        interrupted_at(steps, method, workers)
        for name in ("a.pt", "straight.pt"):
            Path(name).unlink()


def test_a_signal_while_the_result_is_measured_saves_the_finished_run(monkeypatch):
    from lpss_cli.jobs import training_job

    more = {"data": None, "arch": None, "batch_size": 128, "epochs": 2, "sparsity": 0.9}
    evaluate, calls, last = training_job.evaluate, [], None

    def slow(*arguments, **options):
        calls.append(1)
        if len(calls) == last:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(training_job, "evaluate", slow)
    training_job.train(noisy("straight.pt", **more, method="gsm"))
    last = len(calls)  # the others measure epochs, and before the cut
    calls.clear()
    with pytest.raises(StoppedError, match="after step 22 of 22: its state is in") as error:
        training_job.train(noisy("a.pt", **more, method="gsm"))
    assert error.value.exit_code == 130
    callback = Signaller(None)
    callback.on_epoch = lambda run: pytest.fail("it trained again")
    training_job.train(noisy("a.pt", **more, method="gsm", resume=True), callback)
    same_bits("straight.pt", "a.pt")  # the accuracy before the cut too
    assert loading.read(Path("a.pt")).meta["metrics"]["before_cut"] is not None


def test_a_signal_while_the_artifact_is_written_lets_it_be_written(monkeypatch):
    save = artifact.save

    def signalled(*arguments):
        signal.raise_signal(signal.SIGTERM)
        save(*arguments)

    monkeypatch.setattr(artifact, "save", signalled)
    training_job.train(noisy("a.pt", epochs=1))
    assert loading.read(Path("a.pt")).meta["sparsity"] == 0.5


def test_a_signal_before_the_first_step_saves_nothing(monkeypatch):
    from lpss_cli.methods.gmp import GMP

    monkeypatch.setattr(GMP, "prepare", lambda *_: signal.raise_signal(signal.SIGHUP))
    with pytest.raises(StoppedError, match="by SIGHUP before the first step") as error:
        training_job.train(noisy("a.pt", method="gmp"))
    assert (error.value.exit_code, error.value.do) == (129, "nothing was saved")
    assert not list(Path().glob("*a.pt*"))


def test_a_state_that_cannot_be_saved_is_said(monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("lpss_cli.checkpoints.training_state.atomic_write", full)
    with pytest.raises(StoppedError, match=r"by SIGTERM after step 3 of 30$") as error:
        training_job.train(noisy("a.pt"), Signaller(3))
    assert error.value.do == "nothing was saved"


def test_a_ticket_goes_on_in_its_second_training():
    training_job.train(noisy("s.pt", keep_init=True))

    def ask(out, **more):
        return noisy(out, sparsity=None, command=f"lpss ticket s.pt --out {out}", **more)

    class Second(Signaller):
        def on_note(self, text):
            self.step = 11 if "random mask" in text else self.step

    source = Path("s.pt")
    for start in ("rewind", "centroids"):
        straight = tickets.ticket(source, ask(f"{start}.pt"), start)
        out = f"a.{start}.pt"
        for callback, where in ((Signaller(4), out), (Second(None), f"{out}.control")):
            with pytest.raises(StoppedError, match=f"its state is in {where}.partial") as error:
                tickets.ticket(
                    source, ask(out, resume=callback.step is None), start, callback=callback
                )
            assert error.value.do == f"resume with: lpss ticket s.pt --out {out} --resume"
        trained = Path(out).read_bytes()
        if start == "rewind":
            with pytest.raises(
                InputError, match=r"is not a ticket of s\.pt from the start 'random'"
            ):
                tickets.ticket(source, ask(out, resume=True), "random")
        ticket = tickets.ticket(source, ask(out, resume=True), start)
        assert ticket.control == straight.control
        assert replace(ticket.outcome, report=None, seconds=0) == replace(
            straight.outcome, report=None, seconds=0
        )
        assert Path(out).read_bytes() == trained
        same_bits(f"{start}.pt", out)
        assert not [p for p in Path().iterdir() if "control" in p.name or "partial" in p.name]


# --- handlers ------------------------------------------------------------------------------------


def handlers():
    return [signal.getsignal(number) for number in interrupts.SIGNALS]


def test_handlers_are_there_inside_the_block_alone():
    before = handlers()
    with interrupts.handle_signals() as found:
        assert handlers() == [found.receive] * len(before)
        with pytest.raises(interrupts.SignalError):
            signal.raise_signal(signal.SIGTERM)
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), interrupts.handle_signals():
        _ = 1 / 0
    assert handlers() == before


def test_what_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.handle_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_and_the_library_install_nothing():
    before, seen = handlers(), []

    def elsewhere():
        with interrupts.handle_signals():
            seen.append(handlers())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()

    class Look(JobCallback):
        def on_step(self, run):
            seen.append(handlers())

    pair = torch.randn(32, 6), torch.arange(32) % 3
    lpss_cli.sparsify(torch.nn.Linear(6, 3), pair, epochs=1, batch_size=16, callback=Look())
    assert seen == [before] * 3


def test_the_first_deferred_signal_waits_and_the_second_does_not():
    found = interrupts.Interrupts()
    found.release()
    found.defer()
    found.receive(15)
    assert found.pending == 15
    with pytest.raises(interrupts.SignalError) as second:
        found.receive(2)
    assert second.value.number == 2
    with pytest.raises(interrupts.SignalError):
        found.release()
    found.close()
    found.receive(2)


def test_a_stop_has_two_lines_and_its_exit_code_even_with_debug(monkeypatch):
    def stopped(*_, **__):
        raise StoppedError("interrupted by SIGTERM", "go on", 15)

    monkeypatch.setattr(training_job, "train", stopped)
    for debug in ((), ("--debug",)):
        assert lpss("train", *debug) == (143, "", "Error: interrupted by SIGTERM\n  go on\n")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("signals", [1, 2])
def test_a_reader_that_hangs_holds_nothing_up(server, here, signals):
    """The step before is finished, or given up at the second signal."""
    Path("hang.py").write_text(
        FACTORY.replace(
            "x = torch",
            "if i == 95: open('hangs', 'w'); __import__('time').sleep(600)\n        x = torch",
        )
    )
    words = [word.replace("data.py", "hang.py") for word in NOISY]
    with server.run(here, *words, pause=1 if signals == 1 else None) as run:
        run.until("hangs")
        if signals == 2:
            time.sleep(2.0)  # until there is no other batch left to train on
            run.send(signal.SIGINT)
            time.sleep(1.0)  # two at once would be one
        run.send(signal.SIGINT)
        run.go()
        assert run.code() == 130
        assert ("a second time, at once" if signals == 2 else "after step 1 of") in run.err
        wait_for(lambda: not run.members, "the end of the readers")
