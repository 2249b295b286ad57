"""Odd but legal: what people's checkpoints look like, and what of it is refused with a list."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from faults import STATE, archive, lpss, tensor_pickle, two_lines
from torch import nn
from torch.nn.utils import parametrizations, prune

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.load_weights import load_into, network_part
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.errors import InputError
from lpss_cli.models import ModelInfo
from lpss_cli.reporting.report import report


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


def saved(tmp_path: Path, state: object, **options: object) -> Path:
    torch.save(state, tmp_path / "f.pt", **options)
    return tmp_path / "f.pt"


def equal(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(state) == set(other) and all(torch.equal(state[n], other[n]) for n in other)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_prefixes_are_stripped(tmp_path, prefix):
    bare = net().state_dict()
    checkpoint = read(saved(tmp_path, {prefix + name: t for name, t in bare.items()}))
    assert equal(checkpoint.state_dict, bare)
    assert "stripped the prefix" in checkpoint.notes[0]


def test_a_compiled_part_of_a_network(tmp_path):
    bare = net().state_dict()
    state = {name.replace("1.", "1._orig_mod."): t for name, t in bare.items()}
    checkpoint = read(saved(tmp_path, state))
    assert equal(checkpoint.state_dict, bare)
    assert "within names" in checkpoint.notes[0]


@pytest.mark.parametrize("prefix", ["model.", "net.inner."])
@pytest.mark.parametrize("others", [{}, {"criterion.weight": torch.ones(3)}])
def test_a_training_program_keeps_the_network_as_an_attribute(prefix, others):
    bare, notes = net().state_dict(), []
    part = network_part({**others, **{prefix + n: t for n, t in bare.items()}}, bare, notes.append)
    assert list(part) == list(bare)
    assert all(part[name] is bare[name] for name in bare)
    left = "; left out: criterion.weight" if others else ""
    assert notes == [f"took the part of the file under {prefix!r}{left}"]


@pytest.mark.parametrize(
    "prefixes",
    [("",), ("model.", "ema."), ("", "ema.")],  # its own names; two that it may be; its own first
)
def test_what_is_no_single_part_stays_whole(prefixes):
    bare = net().state_dict()
    state = {prefix + name: tensor for prefix in prefixes for name, tensor in bare.items()}
    assert network_part(state, bare, pytest.fail) is state
    del state[prefixes[-1] + "1.bias"]
    assert network_part(state, {**bare, "more": bare["1.bias"]}, pytest.fail) is state


@pytest.mark.parametrize("others", [True, False])
def test_an_attribute_called_module_is_no_wrapper(tmp_path, others):
    model = nn.Module()
    model.module = nn.Linear(6, 3)
    if others:
        model.head = nn.Linear(3, 2)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    checkpoint = read(saved(tmp_path, state))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    load_into(model, checkpoint, ModelInfo("net.py:make"))
    assert equal(dict(model.state_dict()), state)


def test_prune_pairs_and_weight_norms_old_and_new(tmp_path):
    pruned = net()
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    checkpoint = read(saved(tmp_path, pruned.state_dict()))
    assert torch.equal(checkpoint.state_dict["0.weight"], pruned[0].weight)
    new = net()
    parametrizations.weight_norm(new[0])
    old = net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old[0])
    for model in (new, old):
        checkpoint = read(saved(tmp_path, model.state_dict()))
        torch.testing.assert_close(checkpoint.state_dict["0.weight"], net()[0].weight.detach())
        assert set(checkpoint.state_dict) == set(net().state_dict())


@pytest.mark.parametrize(
    "state",
    [
        {"a_orig": torch.ones(2, 1), "a_mask": torch.ones(1, 2)},
        {"a_orig": torch.ones(2, 2), "a_mask": torch.ones(2, 2), "a": torch.ones(2, 2)},
        {"a_g": torch.ones(10**5, 1), "a_v": torch.ones(1, 10**5)},
        {"parametrizations.w.original0": torch.ones(3),
         "parametrizations.w.original1": torch.ones(4)},
        {"a_g": torch.ones(2, 1), "a_v": torch.ones(2, 2, dtype=torch.int64)},
        {"_orig": torch.ones(2), "_mask": torch.ones(3)},
    ],
)  # fmt: skip
def test_names_that_only_look_like_halves_of_a_pair_stay(tmp_path, state):
    assert equal(read(saved(tmp_path, state)).state_dict, state)


@pytest.mark.parametrize("zipped", [True, False])
def test_tied_weights_count_once_and_stay_tied(tmp_path, zipped):
    shared = torch.randn(50, 40)
    state = {"encoder.weight": shared, "decoder.weight": shared}
    checkpoint = read(saved(tmp_path, state, _use_new_zipfile_serialization=zipped))
    found = report(checkpoint)
    assert (found.parameters, found.weights) == (2000, 2000)
    artifact.save(tmp_path / "a.pt", checkpoint.state_dict, {"arch": "x"})
    back = read(tmp_path / "a.pt").state_dict
    assert back["encoder.weight"].data_ptr() == back["decoder.weight"].data_ptr()
    assert (tmp_path / "a.pt").stat().st_size < 2 * shared.nbytes
    # Transposed ones too, which have to be copied.
    artifact.save(tmp_path / "t.pt", {"a": shared.T, "b": shared.T}, {})
    back = read(tmp_path / "t.pt").state_dict
    assert torch.equal(back["a"], shared.T)
    assert back["a"].data_ptr() == back["b"].data_ptr()


def test_a_view_does_not_bring_what_it_looks_into(tmp_path):
    large = torch.randn(1000, 1000)
    artifact.save(tmp_path / "a.pt", {"w": large[:2, :3], "row": large[5]}, {})
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    back = read(tmp_path / "a.pt").state_dict
    assert torch.equal(back["w"], large[:2, :3])
    assert torch.equal(back["row"], large[5])


def test_views_strides_and_tensors_of_another_device(tmp_path):
    base = torch.arange(24.0)
    state = {"t.weight": base.view(4, 6).T, "step.weight": base.view(4, 6)[:, ::2],
             "wide.weight": torch.ones(1).expand(3, 4), "scalar": torch.tensor(3.0)}  # fmt: skip
    checkpoint = read(saved(tmp_path, state))
    assert equal(checkpoint.state_dict, state)
    # Saved on a GPU: the place is a text in the pickle.
    pickled = tensor_pickle((2,), (1,), 2).replace(
        b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:7"
    )
    (tmp_path / "f.pt").write_bytes(archive(pickled, **{"0": torch.ones(2).numpy().tobytes()}))
    assert read(tmp_path / "f.pt").state_dict["w"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_through_report_and_export(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    state = {name: t.to(dtype) for name, t in STATE.items()}
    torch.save(state, "f.pt")
    code, out, err = lpss("report", "f.pt", "--json")
    assert code == 0, err
    assert json.loads(out)["zeros"] == int((STATE["fc2.weight"] == 0).sum())
    assert lpss("export", "f.pt", "--format", "safetensors")[0] == 0
    assert equal(read(Path("f.safetensors")).state_dict, state)
    assert {t.dtype for t in read(Path("f.safetensors")).state_dict.values()} == {dtype}


def test_numbers_of_eight_bits_are_reported_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": STATE["fc2.weight"].to(torch.float8_e4m3fn)}, "f.pt")
    code, out, err = lpss("report", "f.pt", "--json")
    assert (code, json.loads(out)["zeros"]) == (0, 6), err
    assert lpss("export", "f.pt", "--format", "safetensors")[0] == 0
    assert read(Path("f.safetensors")).state_dict["w"].dtype == torch.float8_e4m3fn


def test_rows_of_nothing(tmp_path):
    path = saved(tmp_path, {"empty.weight": torch.zeros(0, 5), "w": torch.eye(3)})
    for words in (["report", path], ["report", path, "--json"], ["report", path, "--csv"]):
        code, _, err = lpss(*words)
        assert code == 0, err
    assert lpss("export", path, "--format", "safetensors", "--force")[0] == 0
    assert read(tmp_path / "f.safetensors").state_dict["empty.weight"].shape == (0, 5)


def test_misfits_are_listed(tmp_path):
    model = net()
    good = model.state_dict()
    for change, said in (
        (lambda s: s.pop("0.bias"), "0.bias is missing"),
        (lambda s: s.update(head=torch.ones(1)), "head is unknown"),
        (lambda s: s.update({"0.bias": torch.ones(6)}), r"0.bias has shape \(6,\), not \(5,\)"),
        (lambda s: s.update({"0.bias": torch.ones(5).to(torch.int8)}), "0.bias is int8, not float"),
        (lambda s: s.update({"0.bias": torch.ones(5) * 1j}), "0.bias is complex64, not float32"),
        (lambda s: s.update({"1.bias": torch.ones(3) / 0}), "1.bias holds 3 values that are not f"),
    ):
        state = dict(good)
        change(state)
        with pytest.raises(InputError, match=said):
            load_into(model, read(saved(tmp_path, state)), ModelInfo("net"))
    load_into(model, Checkpoint(tmp_path, dict(good)), ModelInfo("net"))


def test_weights_that_are_not_finite_are_named_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {**STATE, "fc1.bias": torch.tensor([0.0, float("nan"), float("inf"), 1.0])}
    artifact.save(Path("f.pt"), state, {"arch": "mlp:6-4-3", "data": {"name": "digits"}})
    code, _, err = lpss("report", "f.pt")
    assert code == 0
    assert "fc1.bias (2)" in err
    columns = "a,b,c,d,e,f,y\n" + "".join(f"{i},{i},1,2,3,{i % 7},{i % 3}\n" for i in range(60))
    Path("t.csv").write_text(columns)
    for name in ("sparsify", "eval", "export"):
        code, _, err = lpss(name, "f.pt", "--data", "t.csv", "--target", "y", "--quiet")
        assert (code, two_lines(err)) == (2, True), err
        assert "fc1.bias holds 2 values that are not finite" in err
    assert sorted(os.listdir()) == ["f.pt", "t.csv"]
