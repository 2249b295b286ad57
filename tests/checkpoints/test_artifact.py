"""Artifacts: saved tensors are read back bit for bit, with or without lpss."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError


def test_saved_tensors_are_read_back_bit_for_bit(tmp_path):
    state = {
        "conv.weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "t.weight": torch.randn(5, 6).T,
        "bf16": torch.randn(7).bfloat16(),
        "steps": torch.tensor(2**40),
        "negative_zero": torch.tensor([-0.0, 0.0]),
        "grad": torch.nn.Parameter(torch.ones(2)),
    }
    meta = {"arch": "x", "history": [{"loss": 0.5}], "seed": 2**63, "none": None, "ö": "ü"}
    artifact.save(tmp_path / "m.pt", state, meta)
    back = read(tmp_path / "m.pt")
    assert back.meta == meta
    assert list(back.state_dict) == list(state)
    for name, tensor in state.items():
        assert back.state_dict[name].dtype == tensor.dtype
        assert torch.equal(back.state_dict[name], tensor)
    assert back.state_dict["negative_zero"].signbit().tolist() == [True, False]


def test_an_artifact_can_be_read_without_lpss(tmp_path):
    artifact.save(tmp_path / "m.pt", {"w": torch.ones(2, 2)}, {"versions": artifact.versions()})
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert list(content) == ["lpss", "state_dict"]
    assert content["lpss"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "names", [["module.w"], ["w_g", "w_v"], ["w_orig", "w_mask"], ["_orig_mod.a", "_orig_mod.b"]]
)
def test_names_in_an_artifact_are_never_folded(tmp_path, names):
    artifact.save(tmp_path / "m.pt", {name: torch.ones(3, 1) for name in names}, {})
    back = read(tmp_path / "m.pt")
    assert list(back.state_dict) == names
    assert back.notes == []


def test_nan_weights_can_be_saved_for_inspection(tmp_path):
    artifact.save(tmp_path / "m.pt", {"w": torch.tensor([float("nan"), 1.0])}, {})
    assert read(tmp_path / "m.pt").state_dict["w"].isnan().tolist() == [True, False]


def test_a_file_that_reads_back_differently_is_not_left(tmp_path, monkeypatch):
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    write = torch.save

    other = {"w": torch.tensor([1.0, 2.0])}
    monkeypatch.setattr(torch, "save", lambda c, t: write({**c, "state_dict": other}, t))
    with pytest.raises(InputError, match="reads back differently"):
        artifact.save(path, {"w": torch.ones(2)}, {})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), RuntimeError("enforce fail")]
)
def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=rf"cannot write .*m\.pt: {error}"):
        artifact.save(tmp_path / "m.pt", {"w": torch.ones(2)}, {})
    assert os.listdir(tmp_path) == []


def test_metadata_that_only_a_pickle_could_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="pickled objects"):
        artifact.save(tmp_path / "m.pt", {"w": torch.ones(2)}, {"path": tmp_path})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("modern", [True, False])
def test_sha256_equals_the_standards_example(tmp_path, monkeypatch, modern):
    if not modern:  # Python 3.10
        monkeypatch.delattr(hashlib, "file_digest", raising=False)
    (tmp_path / "abc").write_bytes(b"abc")
    assert artifact.sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    (tmp_path / "big").write_bytes(b"x" * (2**20 + 1))
    expected = hashlib.sha256(b"x" * (2**20 + 1)).hexdigest()
    assert artifact.sha256(tmp_path / "big") == expected
