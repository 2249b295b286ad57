"""A killed run goes on to the same bits; another run's state is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lpss_cli import jobs, loading, resuming
from lpss_cli.errors import InputError, RunError
from lpss_cli.job import JobWatcher
from lpss_cli.request import Request


class KilledError(Exception):
    pass


class Killer(JobWatcher):
    """Notes what is said, and stops the run in the middle of an epoch."""

    def __init__(self, step=None):
        self.step, self.notes, self.warnings, self.epochs = step, [], [], 0

    def on_note(self, text):
        self.notes.append(text)

    def on_warning(self, text):
        self.warnings.append(text)

    def on_epoch(self, run):
        self.epochs += 1

    def on_step(self, run):
        if run.step == self.step:
            raise KilledError


@pytest.fixture(autouse=True)
def saved_always(monkeypatch, tmp_path):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 0.0)
    monkeypatch.chdir(tmp_path)


def ask(out, **more):
    return Request(Path(out), **{"epochs": 4, "batch_size": 128, "seed": 3, **more})


def killed(call, step=30):
    """Run to the middle of epoch 3 (11 steps an epoch)."""
    with pytest.raises(KilledError):
        call(Killer(step))


def assert_same_bits(a, b):
    a, b = loading.read(Path(a)), loading.read(Path(b))
    assert a.state_dict.keys() == b.state_dict.keys()
    for name, tensor in a.state_dict.items():
        assert torch.equal(tensor, b.state_dict[name]), name
    keys = ("epoch", "loss", "sparsity")
    histories = [[[e[k] for k in keys] for e in x.meta["history"]] for x in (a, b)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(method):
    more = {"method": method, "sparsity": 0.9, "options": {"frequency": 3}}
    jobs.train(ask("straight.pt", **more))
    killed(lambda watcher: jobs.train(ask("a.pt", **more), watcher))
    assert Path("a.pt.partial").exists()
    assert not Path("a.pt").exists()
    watcher = Killer()
    outcome = jobs.train(ask("a.pt", **more, resume=True), watcher)
    assert "going on from a.pt.partial, after epoch 2" in watcher.notes
    assert watcher.epochs == 2
    assert_same_bits("straight.pt", "a.pt")
    assert sorted(p.name for p in Path().iterdir()) == ["a.pt", "straight.pt"]
    history = loading.read(Path("a.pt")).meta["history"]
    assert outcome.seconds >= sum(epoch["seconds"] for epoch in history)


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_resumed_sparsification_is_the_uninterrupted_one_bit_for_bit(method):
    jobs.train(ask("dense.pt"))
    more = {"method": method, "options": {"frequency": 3}}
    dense = Path("dense.pt")
    jobs.sparsify(dense, ask("straight.pt", **more))
    killed(lambda watcher: jobs.sparsify(dense, ask("a.pt", **more), watcher))
    jobs.sparsify(dense, ask("a.pt", **more, resume=True))
    assert_same_bits("straight.pt", "a.pt")
    assert not Path("a.pt.partial").exists()


def test_without_a_partial_a_resumed_run_starts_and_says_so():
    watcher = Killer()
    jobs.train(ask("a.pt", epochs=1, resume=True), watcher)
    assert "there is no a.pt.partial: starting from the beginning" in watcher.notes


def test_without_resume_a_run_starts_from_the_beginning_and_says_so():
    killed(lambda watcher: jobs.train(ask("a.pt"), watcher))
    watcher = Killer()
    jobs.train(ask("a.pt"), watcher)
    assert "a.pt.partial is of a killed run: --resume would go on with it" in watcher.notes
    assert watcher.epochs == 4
    assert not Path("a.pt.partial").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"epochs": 5}, "epochs was 4 there and is 5 here"),
        ({"seed": 4}, "seed was 3 there and is 4 here"),
        ({"arch": "mlp:64-20-10"}, "arch was 'mlp:64-300-100-10' there and is 'mlp:64-20-10' here"),
        ({"method": "gmp"}, "method was 'lpss' there and is 'gmp' here"),
        ({"options": {"lr": 0.03}}, r"method\.lr was 0\.\d+ there and is 0\.03 here"),
        ({"holdout": 0.5}, "data fingerprint was"),
        (
            {"data_overrides": {"mean": [0.1]}},
            r"data\.mean was \[0\.30.*\] there and is \[0\.1\]",
        ),
    ],
    ids=str,
)
def test_the_state_of_another_run_is_refused_with_the_first_difference(more, said):
    killed(lambda watcher: jobs.train(ask("a.pt", sparsity=0.5), watcher))
    before = Path("a.pt.partial").read_bytes()
    with pytest.raises(InputError, match=f"of another run: {said}") as error:
        jobs.train(ask("a.pt", **{"sparsity": 0.5, **more}, resume=True))
    assert "leave --resume out" in error.value.do
    assert Path("a.pt.partial").read_bytes() == before


def test_another_input_of_a_sparsification_is_another_run():
    jobs.train(ask("dense.pt", epochs=1))
    killed(lambda watcher: jobs.sparsify(Path("dense.pt"), ask("a.pt"), watcher))
    jobs.train(ask("dense.pt", epochs=1, seed=9, force=True))
    with pytest.raises(InputError, match="of another run: source was"):
        jobs.sparsify(Path("dense.pt"), ask("a.pt", resume=True))


@pytest.mark.parametrize("content", [b"", b"no zip file", {"state": {}}, [1]], ids=repr)
def test_a_broken_partial_is_refused(content):
    if isinstance(content, bytes):
        Path("a.pt.partial").write_bytes(content)
    else:
        torch.save(content, "a.pt.partial")
    with pytest.raises(InputError, match=r"a\.pt\.partial cannot be read"):
        jobs.train(ask("a.pt", resume=True))


def test_a_partial_is_saved_no_more_often_than_asked(monkeypatch):
    monkeypatch.setattr(resuming, "SAVE_EVERY", 1000.0)
    killed(lambda watcher: jobs.train(ask("a.pt"), watcher))
    assert list(Path().iterdir()) == []


def test_a_full_disk_is_a_warning_and_training_goes_on(monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("lpss_cli.resuming.replacing", full)
    watcher = Killer()
    jobs.train(ask("a.pt"), watcher)
    assert watcher.epochs == 4
    assert "a.pt.partial could not be saved: OSError: no space left" in watcher.warnings[0]


def test_a_diverged_run_leaves_its_last_good_state():
    killed(lambda watcher: jobs.train(ask("a.pt"), watcher))
    before = Path("a.pt.partial").read_bytes()
    with pytest.raises(RunError):
        jobs.train(ask("a.pt", options={"lr": 1e30}))
    assert Path("a.pt.partial").read_bytes() == before


def test_a_run_killed_by_the_system_goes_on(tmp_path):
    """A real SIGKILL: whatever moment it hits, what is there is whole."""
    code = (
        "import sys; from lpss_cli import resuming; resuming.SAVE_EVERY = 0.0\n"
        "from lpss_cli.cli import app; sys.argv[0] = 'lpss'; app.main()"
    )
    command = ["train", "--epochs", "400", "--batch-size", "64", "--out", "a.pt"]
    process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not Path("a.pt.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not Path("a.pt").exists()
    state = torch.load("a.pt.partial", weights_only=True)["state"]
    assert 1 <= state["epoch"] < 400
