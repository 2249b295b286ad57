"""Damaged files: truncated, with flipped bits, of other formats, changing while they are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest
import torch
from faults import COMMANDS, STATE, command, digest, kinds, lpss, saved, two_lines

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError
from lpss_cli.utils import digest as manifest

HERE = Path(__file__).parents[1]
KINDS = ("torch", "legacy", "safetensors", "artifact", "export")


@pytest.fixture(scope="module")
def intact_files(tmp_path_factory):
    return kinds(tmp_path_factory.mktemp("intact_files"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused_by_every_command(tmp_path, intact_files, kind):
    content, path, out = intact_files[kind], tmp_path / "f.pt", tmp_path / "out"
    out.mkdir()
    (out / "o.pt").write_bytes(b"old")
    for part in range(20):
        path.write_bytes(content[: len(content) * part // 20])
        for name in COMMANDS:
            code, _, err = command(name, path, out)
            assert (code, two_lines(err)) == (2, True), (part, name, err)
    assert (out / "o.pt").read_bytes() == b"old"
    assert os.listdir(out) == ["o.pt"]


def onnx_model() -> bytes:
    helper = onnx.helper
    shape = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [shape], [
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])  # fmt: skip
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"epoch,loss\n1,0.5\n", "not a readable checkpoint"),
        (b"\x80\x02}q\x00.", "not a readable checkpoint"),
        (b"PK\x03\x04", "cannot be read"),
        (b"PK\x05\x06" + bytes(18), "not a readable checkpoint"),
        (onnx_model(), "an ONNX "),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_of_other_formats_are_recognized_by_content(tmp_path, content, message, suffix):
    path = tmp_path / f"f.{suffix}"
    path.write_bytes(content)
    for name in COMMANDS:
        code, _, err = command(name, path, tmp_path)
        assert (code, two_lines(err)) == (2, True), err
        assert message in err


def test_directories_pipes_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, message in (
        ("pipe", "is not a file"),
        ("folder", "is a folder without config.json"),
        ("none", "there is no file"),
        ("dangling", "there is no file"),
        ("x" * 300, "File name too long"),
    ):
        for word in COMMANDS:
            began = time.monotonic()
            code, _, err = command(word, tmp_path / name, tmp_path)
            assert (code, two_lines(err)) == (2, True), err
            assert message in err
            assert time.monotonic() - began < 30  # a pipe without a writer would wait forever


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f.pt"
    content = saved(STATE)
    real = os.fstat

    def changing_fstat(change: bytes):
        calls = []

        def fstat(descriptor: int) -> os.stat_result:
            found = real(descriptor)
            calls.append(1)
            if len(calls) == 2:  # after the size was checked, before the file is read
                path.write_bytes(change)
            return found

        return fstat

    for change in (content + b"more", content[:-50], b""):
        path.write_bytes(content)
        monkeypatch.setattr(os, "fstat", changing_fstat(change))
        with pytest.raises(InputError, match="it changed while it was being read"):
            read(path)
        monkeypatch.undo()


def test_a_file_that_is_rewritten_all_the_time_is_read_or_refused(tmp_path):
    path, content, stop = tmp_path / "f.pt", saved(STATE), threading.Event()
    path.write_bytes(content)

    def rewrite() -> None:
        while not stop.is_set():
            path.write_bytes(content[: len(content) // 2])
            path.write_bytes(content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(100):
            try:
                assert set(read(path).state_dict) == set(STATE)
            except InputError as error:
                assert error.do  # noqa: PT017
    finally:
        stop.set()
        writer.join()


def flip_bits(count: int, path: Path, content: bytes) -> tuple[int, int]:
    """Flip single, evenly spaced bits; return how many were refused and how many changed nothing.

    Fails on any that loads as something else.
    """
    path.write_bytes(content)
    right = read(path)
    refused = harmless = 0
    for index in range(count):
        place = index * 8 * len(content) // count
        broken = bytearray(content)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        try:
            found = read(path)
        except InputError:
            refused += 1
            continue
        assert found.meta == right.meta, place
        assert list(found.state_dict) == list(right.state_dict), place
        for name, tensor in right.state_dict.items():
            other = found.state_dict[name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), place
            assert other.numpy().tobytes() == tensor.numpy().tobytes(), place
        harmless += 1
    return refused, harmless


@pytest.mark.parametrize("kind", ["artifact", "export"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, intact_files, kind):
    refused, harmless = flip_bits(400, tmp_path / "f", intact_files[kind])
    assert refused + harmless == 400
    assert refused > 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["artifact", "export"])
def test_ten_thousand_flipped_bits(tmp_path, intact_files, kind):
    refused, harmless = flip_bits(10_000, tmp_path / "f", intact_files[kind])
    print(f"{kind}: {refused} refused, {harmless} changed nothing")
    assert refused + harmless == 10_000


def fuzz(folder: Path, count: int, seed: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), str(folder), str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0, found["first"]
    assert sum(found["outcomes"].values()) == count
    assert found["grown"] < 500e6
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_two_thousand_mutations_are_read_or_refused(tmp_path):
    found = fuzz(tmp_path, 2000, 0)
    # The fuzzer gets both results for every kind of file.
    assert len(found["outcomes"]) == 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_a_hundred_thousand_mutations(tmp_path):
    print(fuzz(tmp_path, 100_000, 1))


def fuzz_inputs(folder: Path, count: int, seed: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz_inputs.py"), str(folder), str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0, found["first"]
    assert sum(found["outcomes"].values()) == count
    return found


def test_mutations_of_all_other_inputs_are_read_or_refused(tmp_path):
    found = fuzz_inputs(tmp_path, 800, 0)
    assert sum(n for kind, n in found["outcomes"].items() if kind.endswith("refused")) > 500


@pytest.mark.slow
def test_forty_thousand_mutations_of_all_other_inputs(tmp_path):
    print(fuzz_inputs(tmp_path, 40_000, 1))


def test_the_digest_covers_tensors_record_and_initial_weights(tmp_path):
    artifact.save(tmp_path / "a.pt", STATE, {"arch": "mlp:6-4-3"}, init=STATE)
    original = torch.load(tmp_path / "a.pt", weights_only=True)
    before = digest(tmp_path / "a.pt")
    changes = [
        lambda c: c["state_dict"].update({"fc1.bias": torch.ones(4)}),
        lambda c: c["state_dict"].update({"fc1.bias": torch.zeros(4).double()}),
        lambda c: c["state_dict"].update({"fc1.bias": torch.zeros(2, 2)}),
        lambda c: c["state_dict"].update({"more": torch.zeros(4)}),
        lambda c: c["state_dict"].pop("fc1.bias"),
        lambda c: c["lpss"].update(arch="mlp:6-4-4"),
        lambda c: c["lpss"].update(more=1),
        lambda c: c["lpss"].pop(manifest.MANIFEST_KEY),
        lambda c: c["init"].update({"fc1.bias": torch.ones(4)}),
        lambda c: c.pop("init"),
    ]
    for change in changes:
        content = {key: dict(value) for key, value in original.items()}
        change(content)
        torch.save(content, tmp_path / "b.pt")
        with pytest.raises(InputError, match="not what was written"):
            read(tmp_path / "b.pt")
    assert digest(tmp_path / "a.pt") == before
    # The format from before the digest is still read; a later one is not.
    old = {**original, "lpss": {"format": 1, "arch": "mlp:6-4-3"}}
    torch.save(old, tmp_path / "old.pt")
    assert read(tmp_path / "old.pt").meta == {"arch": "mlp:6-4-3"}
    torch.save({**original, "lpss": {"format": 99}}, tmp_path / "new.pt")
    code, _, err = lpss("report", tmp_path / "new.pt")
    assert (code, two_lines(err)) == (2, True)
    assert "format 99" in err
