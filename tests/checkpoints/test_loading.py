"""Every accepted kind of checkpoint, and every kind of file that is refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.artifact_lookup import is_artifact, newest_artifact
from lpss_cli.checkpoints.load_weights import load_into
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.errors import InputError
from lpss_cli.models import ModelInfo

STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.tensor([-1.0, 0.5])}


def saved(tmp_path: Path, content: object, **kwargs: bool) -> Path:
    torch.save(content, tmp_path / "file.pt", **kwargs)
    return tmp_path / "file.pt"


def same(state: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(STATE) and all(torch.equal(state[n], STATE[n]) for n in STATE)


def test_an_artifact_keeps_its_facts(tmp_path):
    artifact.save(tmp_path / "m.pt", STATE, {"arch": "mlp:3-2"})
    checkpoint = read(tmp_path / "m.pt")
    assert same(checkpoint.state_dict)
    assert checkpoint.kind == "lpss"
    assert checkpoint.meta["arch"] == "mlp:3-2"


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_is_found_bare_or_nested(tmp_path, key):
    beside = {
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]},
        "best": torch.tensor(0.9),
        "empty": {},
    }
    checkpoint = read(saved(tmp_path, STATE if key is None else {**beside, key: STATE}))
    assert same(checkpoint.state_dict)
    assert (checkpoint.kind, checkpoint.meta) == ("state_dict", {})
    assert checkpoint.notes == (["took the state_dict under 'net'"] if key == "net" else [])


def test_the_usual_name_wins_and_one_of_several_has_to_be_chosen(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    assert same(read(saved(tmp_path, {"ema": other, "model": STATE})).state_dict)
    with pytest.raises(InputError, match="holds several state_dicts: 'first', 'second'") as found:
        read(saved(tmp_path, {"first": STATE, "second": other}))
    assert "torch.load(FILE)['first']" in found.value.do


@pytest.mark.parametrize("name", ["statistics", "layer._extra_state"])
def test_something_small_beside_the_tensors_is_not_the_network(tmp_path, name):
    assert same(read(saved(tmp_path, {**STATE, name: {"mean": torch.zeros(1)}})).state_dict)


def test_the_format_before_zip_archives(tmp_path):
    path = saved(tmp_path, STATE, _use_new_zipfile_serialization=False)
    assert same(read(path).state_dict)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])  # told by content, not by name
def test_safetensors(tmp_path, name):
    save_file(STATE, tmp_path / name, {"lpss": '{"arch": "mlp:3-2"}'})
    checkpoint = read(tmp_path / name)
    assert set(checkpoint.state_dict) == set(STATE)
    assert all(torch.equal(checkpoint.state_dict[n], STATE[n]) for n in STATE)
    assert (checkpoint.kind, checkpoint.meta) == ("safetensors", {"arch": "mlp:3-2"})


@pytest.mark.parametrize("described", ["not json", "[1]", "7"])
def test_safetensors_with_strange_metadata(tmp_path, described):
    save_file(STATE, tmp_path / "m.safetensors", {"lpss": described})
    assert read(tmp_path / "m.safetensors").meta == {}


CODE = "loading them could run any code"


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_with_the_way_out(tmp_path, zipped):
    path = saved(tmp_path, nn.Linear(3, 2), _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=CODE) as error:
        read(path)
    assert "Linear" in error.value.what
    assert "--trust-pickle" in error.value.do
    trusted = read(path, trust_pickle=True)
    assert {n: t.shape for n, t in trusted.state_dict.items()} == {"weight": (2, 3), "bias": (2,)}


@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_not_executed(tmp_path, monkeypatch, zipped, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    target = tmp_path / "executed"
    content = {**STATE, "evil": Payload(target)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=CODE):
        read(path)
    assert not target.exists()
    read(path, trust_pickle=True)  # the payload is live: the refusal above was needed
    assert target.exists()


def test_a_plain_pickle_is_refused_and_not_executed(tmp_path):
    target = tmp_path / "executed"
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read(tmp_path / "p.pt")
    assert not target.exists()


def test_a_trusted_pickle_of_a_missing_class_says_which(tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(b"\x80\x02cno_such_module\nNet\n.")
    with pytest.raises(InputError, match="no_such_module") as error:
        read(path, trust_pickle=True)
    assert "can be imported" in error.value.do


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, world\n",
        b'{"weights": 1}',
        b"<html>type x</html>",
        b"\0" * 64,
        b"GIF89a",
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read|not a readable") as error:
        read(tmp_path / "f.pt")
    assert "--trust-pickle" not in error.value.do


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kept):
    whole = saved(tmp_path, {"w": torch.ones(200)}).read_bytes()
    save_file({"w": torch.ones(200)}, tmp_path / "whole.safetensors")
    other = (tmp_path / "whole.safetensors").read_bytes()
    for name, data in (("a.pt", whole), ("a.safetensors", other)):
        (tmp_path / name).write_bytes(data[: int(kept * len(data))])
        with pytest.raises(InputError, match=f"{name} (cannot be read|is a damaged|is not a read)"):
            read(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1), st.booleans())
def test_a_damaged_file_gives_a_state_dict_or_an_input_error(tmp_path, changes, zipped):
    path = saved(tmp_path, STATE, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        assert read(path).state_dict


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*none\.pt"):
        read(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"is a folder without config\.json"):
        read(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), {"epoch": 1}, {}, {1: torch.ones(2)}])
def test_content_without_a_state_dict_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="state_dict"):
        read(saved(tmp_path, content))


def test_load_into_copies_and_names_what_does_not_fit(tmp_path):
    model = nn.Sequential()
    model.fc = nn.Linear(3, 2)
    load_into(model, Checkpoint(tmp_path, STATE), ModelInfo("mlp:3-2"))
    assert same(dict(model.state_dict()))
    wrong = {"fc.weight": torch.ones(2, 4), "head": torch.ones(1)}
    with pytest.raises(InputError) as error:
        load_into(model, Checkpoint(tmp_path, wrong), ModelInfo("mlp:3-2"))
    for text in ("fc.bias is missing", "head is unknown", "shape (2, 4), not (2, 3)", "mlp:3-2"):
        assert text in error.value.what
    assert same(dict(model.state_dict()))


def test_the_newest_artifact_is_found_among_other_files(tmp_path):
    with pytest.raises(InputError, match="no lpss artifact") as error:
        newest_artifact(tmp_path)
    assert "lpss train" in error.value.do
    for age, name in enumerate(["new.pt", "old.pt"]):
        artifact.save(tmp_path / name, STATE, {})
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    torch.save({"lpss_head.weight": torch.ones(2, 2)}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("lpss")
    (tmp_path / "dir.pt").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("lpss", "lpss")
    assert newest_artifact(tmp_path) == tmp_path / "new.pt"
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_artifact(p)] == ["new.pt", "old.pt"]
