"""A full disk, on a file system of 512 KiB: two lines, the old files, and nothing beside them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import lpss, two_lines
from helpers import here
from safetensors.torch import save_file

from lpss_cli.utils import subprocesses

SIZE = 512 * 1024
FAST = ("--epochs", "1", "--batch-size", "256", "--quiet")
NET = ("--arch", "mlp:64-8-10")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a folder with an artifact, its pack, and weights without a network."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "m.pt"
    for words in (("train", *NET, *FAST, "--sparsity", "0.5", "--out", path),
                  ("export", path, "--format", "pack", "--quiet")):  # fmt: skip
        code, _, err = lpss(*words)
        assert code == 0, err
    save_file({"a.weight": torch.randn(40, 40)}, folder / "w.safetensors")
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Return a small file system, if this process may mount one."""
    folder = tmp_path_factory.mktemp("disk")
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("tmpfs is Linux's")
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def full(disk, monkeypatch):
    """Return the same without a free byte, and with nothing else in it."""
    monkeypatch.chdir(disk)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def fill():
        with Path("filler").open("wb", buffering=0) as file:
            while file.tell() < SIZE:
                try:
                    file.write(bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
                    break
        assert os.statvfs(".").f_bavail == 0

    return fill


#: Command that writes → the files that it would replace.
WRITERS = {
    "train --arch mlp:64-8-10 --epochs 1 --batch-size 256 --out o.pt": ["o.pt"],
    "sparsify {model} --epochs 1 --batch-size 256 --out o.pt": ["o.pt"],
    "sparsify {weights} --epochs 0 --sparsity 0.5 --out o.safetensors": ["o.safetensors"],
    "ticket {model} --init centroids --epochs 1 --out o.pt": ["o.pt", "o.init.safetensors"],
    "export {model} --format safetensors --out-dir .": ["m.safetensors"],
    "export {model} --format onnx --out-dir .": ["m.onnx"],
    "export {model} --format pack --out-dir .": ["m.lpss"],
    "unpack {pack} --out o.safetensors": ["o.safetensors"],
    "report {model} --html o.html": ["o.html"],
    "init {model} --out o.toml": ["o.toml"],
}


@pytest.mark.parametrize("checked", [True, False], ids=["found before", "found while writing"])
@pytest.mark.parametrize("line", WRITERS)
def test_nothing_is_lost(model, full, monkeypatch, line, checked):
    """Also if the free space was checked before: another program may take it meanwhile."""
    if not checked:
        usage = shutil.disk_usage(".")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))
    for name in WRITERS[line]:
        Path(name).write_bytes(b"old")
    full()
    before = sorted(os.listdir())
    pack, weights = model.with_suffix(".lpss"), model.with_name("w.safetensors")
    words = [word.format(model=model, pack=pack, weights=weights) for word in line.split()]
    code, _, err = lpss(*words, "--force", "--quiet")
    assert (code, two_lines(err)) == (2, True), err
    assert "cannot write" in err or "are free in" in err
    assert checked or "are free in" not in err
    assert sorted(os.listdir()) == before
    assert {Path(name).read_bytes() for name in WRITERS[line]} == {b"old"}


def test_a_state_that_does_not_fit_stops_nothing(full, monkeypatch):
    """There is space for a state, and then there is none; the run continues to its end."""
    words = ("train", *NET, "--epochs", "2", "--batch-size", "256", "--checkpoint-steps", "2")
    write, filled = os.replace, []

    def fill_after(source, target):
        write(source, target)
        if not filled and str(target).endswith(".partial"):
            filled.append(full())

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_after)
        code, _, err = lpss(*words, "--out", "o.pt", "--log", "log.jsonl")
    assert "log.jsonl could not be written: No space left" in err
    assert "o.pt.partial could not be saved" in err
    assert code == 2
    assert two_lines("\n".join(err.splitlines()[-2:])), err
    assert sorted(os.listdir()) == ["filler", "log.jsonl", "o.pt.partial"]
    Path("filler").unlink()
    code, _, err = lpss(*words, "--out", "o.pt", "--resume", "--quiet")
    assert code == 0, err


def test_a_comparison_keeps_its_finished_runs(full, monkeypatch):
    words = ("compare", "--methods", "gmp", "--sparsities", "0.5", "--seeds", "1", "--no-tune",
             *NET, *FAST, "--out-dir", "c")  # fmt: skip

    def call(interrupts, measure, request):
        if request.method == "gmp":
            full()
        return here(interrupts, measure, request)

    monkeypatch.setattr(subprocesses, "call", call)
    code, _, err = lpss(*words)
    assert (code, two_lines(err)) == (2, True), err
    results = Path("c/results.json").read_bytes()
    assert b"dense" in results
    assert b"gmp" not in results
    assert not list(Path("c").rglob(".*"))
    Path("filler").unlink()
    monkeypatch.setattr(subprocesses, "call", here)
    code, _, err = lpss(*words)
    assert code == 0, err
