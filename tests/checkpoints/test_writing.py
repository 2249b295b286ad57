"""Outputs: nothing is lost if a run is killed, fails, or meets another run."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults import ENVIRONMENT, STATE, digest, holder, lpss, two_lines

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError
from lpss_cli.utils import files
from lpss_cli.utils.files import atomic_write, check_space, output_lock

FAST = ("--epochs", "1", "--batch-size", "256", "--quiet")


def refused(said: str, *words: object) -> None:
    code, _, err = lpss(*words, *FAST[-1:])
    assert (code, two_lines(err)) == (2, True), err
    assert said in err


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A small artifact in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    code, _, err = lpss("train", "--arch", "mlp:64-8-10", *FAST)
    assert code == 0, err
    return Path("model.pt")


def temporaries(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_the_second_of_two_runs_on_one_output_is_refused(model):
    for name in ("o.pt", "o.pt.partial"):
        with holder(name):
            busy = temporaries(Path())
            assert len(busy) == 2
            said = f"another run is writing {name}"
            refused(said, "sparsify", model, "--out", "o.pt")
            refused(said, "train", "--out", "o.pt")
            refused(said, "ticket", model, "--out", "o.pt", "--force")
            assert temporaries(Path()) == busy  # files of a run that is alive are not removed
        assert temporaries(Path()) == busy  # a killed run leaves its files
        assert lpss("train", "--arch", "mlp:64-8-10", "--out", "o.pt", *FAST)[0] == 0
        assert temporaries(Path()) == []
        Path("o.pt").unlink()


def test_an_export_is_refused_while_another_writes_it(model):
    with holder("model.onnx"):
        refused("another run is writing model.onnx", "export", model)
        assert not Path("model.safetensors").exists()


def test_only_temporaries_of_the_same_output_are_swept(tmp_path):
    ours = [".a.pt.0123456789abcdef.tmp", ".a.pt.aaaaaaaaaaaaaaaa.tmp"]
    others = [".a.pt.partial.0123456789abcdef.tmp", ".b.pt.0123456789abcdef.tmp", ".a.pt.tmp",
              "a.pt.0123456789abcdef.tmp", ".a.pt.0123456789ABCDEF.tmp"]  # fmt: skip
    for name in ours + others:
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.pt") as temporary:
        temporary.write_bytes(b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a.pt"])


def test_a_process_may_hold_what_it_holds(tmp_path):
    path = tmp_path / "a.pt"
    with output_lock(path), output_lock(path):
        with atomic_write(path) as one, atomic_write(path) as two:
            one.write_bytes(b"one")
            two.write_bytes(b"two")
        assert path.read_bytes() == b"one"
        assert temporaries(tmp_path) == [".a.pt.lock"]
    assert os.listdir(tmp_path) == ["a.pt"]


def test_space_is_checked_before_any_training(model, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    trained = []
    monkeypatch.setattr(
        "lpss_cli.training.trainer.Trainer.train", lambda *a, **k: trained.append(1)
    )
    before = digest(model)
    refused("1,000 are free", "train", "--out", "x.pt")
    refused("1,000 are free", "sparsify", model)
    refused("1,000 are free", "export", model)
    assert trained == []
    assert digest(model) == before
    assert os.listdir() == ["model.pt"]


def test_the_space_that_is_asked_for_is_about_what_is_written(tmp_path):
    state = {"w": torch.randn(300, 300), "tied": torch.zeros(0)}
    state["tied"] = state["w"]
    artifact.save(tmp_path / "a.pt", state, {})
    written = (tmp_path / "a.pt").stat().st_size
    assert written <= artifact.estimated_bytes(state) <= 1.2 * written
    check_space(tmp_path / "a.pt", 1)
    with pytest.raises(InputError, match="are free"):
        check_space(tmp_path / "a.pt", 2**62)


def test_what_cannot_be_written_is_found_before_training(model, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "lpss_cli.training.trainer.Trainer.train", lambda *a, **k: trained.append(1)
    )
    Path("link.pt").symlink_to("model.pt")
    Path("folder.pt").mkdir()
    os.mkfifo("pipe.pt")
    Path("odd.pt.partial").mkdir()
    before = digest(model)
    for out, said in (
        ("nowhere/o.pt", "nowhere does not exist"),
        ("model.pt/o.pt", "model.pt does not exist"),
        ("link.pt", "link.pt is not a regular file"),
        ("folder.pt", "folder.pt is not a regular file"),
        ("pipe.pt", "pipe.pt is not a regular file"),
        ("odd.pt", "odd.pt.partial is not a regular file"),
        ("x" * 252, "File name too long"),
        ("model.pt", "pass --force"),
    ):
        force = () if out == "model.pt" else ("--force",)
        for words in (("train",), ("sparsify", model), ("ticket", model, "--init", "random")):
            refused(said, *words, "--out", out, *force)
    real = os.open

    def read_only(path, flags, *more, **rest):
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return real(path, flags, *more, **rest)

    monkeypatch.setattr(os, "open", read_only)
    refused("cannot be written: Read-only", "sparsify", model, "--out", "o.pt")
    refused("cannot be written: Read-only", "export", model)
    assert trained == []
    assert digest(model) == before


def test_replacing_itself_refuses_links_and_pipes(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(InputError, match="not a regular file"), atomic_write(tmp_path / name):
            pass
    assert (tmp_path / "target").read_bytes() == b"old"


def test_a_file_may_be_sparsified_in_place(model):
    before = read(model)
    assert lpss("sparsify", model, "--out", model, "--force", *FAST)[0] == 0
    after = read(model)
    assert after.meta["source"] == {"file": "model.pt", "sha256": before.sha256}
    assert after.meta["sparsity"] == 0.9


def test_an_input_that_goes_away_while_it_is_trained_costs_nothing(model, monkeypatch):
    from lpss_cli.training.trainer import Trainer

    sha, run = read(model).sha256, Trainer.train

    def without_input(*arguments, **options):
        model.unlink()
        return run(*arguments, **options)

    monkeypatch.setattr(Trainer, "train", without_input)
    assert lpss("sparsify", model, *FAST)[0] == 0
    assert read(Path("model.sparse.pt")).meta["source"]["sha256"] == sha


def test_a_full_disk_leaves_the_old_file(model):
    """The system limits the size of a file, which has the same effect as a full disk."""
    outputs = [Path("model.sparse.pt"), Path("model.safetensors")]
    for path in outputs:
        path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for words in (
        ("sparsify", "model.pt", "--force", *FAST),
        ("export", "model.pt", "--force", "--quiet", "--format", "safetensors"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
        try:
            code, _, err = lpss(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (code, two_lines(err)) == (2, True), err
        assert "cannot write" in err
    assert [path.read_bytes() for path in outputs] == [b"old", b"old"]
    assert temporaries(Path()) == []


def storm(folder: Path, kills: int) -> dict[str, int]:
    """Kill a process that saves in a loop, at random moments; the file must always be complete.

    Each of them is a process of its own, forked from one that has done the imports.
    """
    path, rng = folder / "a.pt", random.Random(0)
    artifact.save(path, {"w": torch.zeros(200, 200)}, {"step": 0})
    found = {"kills": 0, "left": 0, "new": 0}
    words = [sys.executable, "-c", FORKS, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, text=True, env=ENVIRONMENT, **pipes) as server:
        took = 0.05
        for turn in range(kills):
            before = read(path).meta["step"]
            server.stdin.write("go\n")
            server.stdin.flush()
            line = server.stdout.readline()
            while line == "saved\n":  # the child may speak first
                line = server.stdout.readline()
            child = int(line)
            began = time.monotonic()
            if turn % 2:  # half of them are killed in their first save, half in a later one
                assert server.stdout.readline() == "saved\n"
                took = time.monotonic() - began
            time.sleep(rng.uniform(0.0, took))
            os.kill(child, signal.SIGKILL)
            while server.stdout.readline() != "dead\n":
                pass
            found["kills"] += 1
            found["left"] += len(temporaries(folder)) > 0
            after = read(path)  # complete, because its digest is checked
            assert bool((after.state_dict["w"] == after.meta["step"]).all())
            found["new"] += after.meta["step"] != before
        server.stdin.close()
    artifact.save(path, STATE, {"step": -1})  # the next start
    assert os.listdir(folder) == ["a.pt"]
    return found


# Imports once, and saves in children that are forked on request.
FORKS = """
import os, sys
from pathlib import Path
import torch
from lpss_cli.checkpoints import artifact
torch.set_num_threads(1)
path, step = Path(sys.argv[1]), 0
for line in sys.stdin:
    step += 1000
    child = os.fork()
    if not child:
        while True:
            step += 1
            artifact.save(path, {"w": torch.full((200, 200), float(step))}, {"step": step})
            os.write(1, b"saved\\n")
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are POSIX's")
def test_twenty_kills_lose_nothing(tmp_path):
    found = storm(tmp_path, 20)
    assert found["kills"] == 20
    assert found["left"] > 0  # some kills did hit a save
    assert found["new"] >= 10  # and some a later save


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are POSIX's")
def test_two_hundred_kills_lose_nothing(tmp_path):
    found = storm(tmp_path, 200)
    print(found)
    assert found["kills"] == 200


def test_a_killed_training_is_swept_at_the_next_start(model):
    with holder("model.sparse.pt"):
        pass
    assert len(temporaries(Path())) == 2
    assert lpss("sparsify", model, *FAST)[0] == 0
    assert temporaries(Path()) == []


def test_the_mode_follows_the_umask_whoever_writes(model):
    assert lpss("export", model, "--format", "safetensors")[0] == 0
    Path("plain").touch()
    for name in ("model.pt", "model.safetensors"):
        assert Path(name).stat().st_mode == Path("plain").stat().st_mode


def test_threads_do_not_see_another_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is of the whole process"))
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
    assert files._live == set()
