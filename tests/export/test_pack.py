"""Packed files are checked or not left; unpacking, sizes and the comparison of two files."""

from __future__ import annotations

import json
import math
import os

import onnx
import pytest
import torch
from helpers import blobs, network

from lpss_cli.checkpoints import metadata
from lpss_cli.checkpoints.artifact import sha256
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.checkpoints.packed import CHOICES, container, pack
from lpss_cli.cli.views.files import size_table
from lpss_cli.errors import InputError, RunError
from lpss_cli.export import pack as packing
from lpss_cli.export.options import ExportOptions, OnnxOptions
from lpss_cli.export.pack import Reference, export_pack, round_to_code, unpack_file
from lpss_cli.export.safetensors import export_safetensors
from lpss_cli.jobs import export as export_job
from lpss_cli.jobs import training_job, verify
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.export import export_file
from lpss_cli.models import ModelInfo
from lpss_cli.reporting import sizes
from lpss_cli.reporting.report import report

META = {
    "arch": "x",
    "method": "lpss",
    "weights": {"0.weight": {"row_dim": 0, "p": 1.2}, "4.weight": {"row_dim": 0}},
    "history": [{"loss": 0.1}] * 50,
    "histograms": {"0.weight": {"low": -1.0, "high": 1.0, "counts": [1, 2]}},
}


def sparse(seed: int = 0) -> torch.nn.Module:
    model = network(seed=seed)
    for layer in (model[0], model[4]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"lpss": META, "state_dict": sparse().state_dict()}, tmp_path / "m.pt")
    return read(tmp_path / "m.pt")


@pytest.mark.parametrize("values", CHOICES)
def test_a_packed_file_is_a_complete_checkpoint(tmp_path, checkpoint, values):
    reference = Reference(sparse(), ModelInfo(""), blobs())
    path = tmp_path / "m.lpss"
    result = export_pack(checkpoint, path, values=values, reference=reference)
    assert (result.kind, result.bytes) == ("pack", path.stat().st_size)
    back = read(path)
    assert (back.kind, back.notes) == ("pack", [])
    assert back.meta == metadata.for_export(META)
    assert back.about == {"values": values, "source_sha256": sha256(tmp_path / "m.pt")}
    assert list(back.state_dict) == list(checkpoint.state_dict)
    for name, tensor in checkpoint.state_dict.items():
        assert torch.equal(back.state_dict[name] == 0, tensor == 0)
        if name not in (*META["weights"], "0.bias", "4.bias") or values == "fp32":
            assert torch.equal(back.state_dict[name], tensor)
        elif name.endswith("bias"):
            kind = torch.bfloat16 if values == "bf16" else torch.float16
            assert torch.equal(back.state_dict[name], tensor.to(kind).float())
    if values == "fp32":
        assert (result.measured, result.largest_difference) == (None, 0.0)
        assert "bit for bit" in result.checked
    else:
        assert 0 < result.largest_difference < 0.05
        before, after = result.measured["accuracy"]
        assert 0 < before <= 1
        assert abs(before - after) < 0.05
        assert values in result.checked


def test_the_measured_accuracy_is_that_of_the_file(tmp_path, checkpoint, monkeypatch):
    """Rounding that ruins the network shows in the metric: every weight becomes its sign."""
    coarse = {k: t.sign() if t.dim() == 2 else t for k, t in checkpoint.state_dict.items()}
    monkeypatch.setattr(packing, "pack", lambda state, *rest, **more: pack(coarse, *rest, **more))
    monkeypatch.setattr(packing, "check_tensors", lambda *_: None)
    data = blobs()
    result = export_pack(
        checkpoint, tmp_path / "m.lpss", reference=Reference(sparse(), ModelInfo(""), data)
    )
    ruined = sparse()
    ruined.load_state_dict(coarse)
    with torch.no_grad():
        x, y = next(iter(data.test.batches(10_000)))
        expected = float((ruined(x).argmax(1) == y).double().mean())
    assert result.measured["accuracy"][1] == pytest.approx(expected)
    assert result.largest_difference > 0.1


def change_weight(state):
    weight = state["0.weight"].clone()
    weight.view(-1)[weight.view(-1).nonzero()[0]] *= 1.5
    return {**state, "0.weight": weight}


def revive_zero(state):
    weight = state["0.weight"].clone()
    weight.view(-1)[(weight.view(-1) == 0).nonzero()[0]] = 1e-20
    return {**state, "0.weight": weight}


def flip_sign_of_zero(state):
    return {**state, "0.bias": torch.where(state["0.bias"] == 0, -0.0, state["0.bias"])}


DAMAGE = {
    "a weight": (change_weight, "differently at 0.weight"),
    "a zero": (revive_zero, "differently at 0.weight"),
    "the sign of a bias": (flip_sign_of_zero, "differently at 0.bias"),
    "the type": (lambda s: {**s, "1.weight": s["1.weight"].half()}, "differently at 1.weight"),
    "a shape": (lambda s: {**s, "0.bias": s["0.bias"][:, None]}, "differently at 0.bias"),
    "a counter": (
        lambda s: {**s, "1.num_batches_tracked": torch.tensor(9)},
        "differently at 1.num_batches_tracked",
    ),
    "a name": (lambda s: {**s, "more": torch.ones(1)}, "other tensors"),
    "the order": (lambda s: dict(reversed(s.items())), "other tensors"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("values", CHOICES)
def test_a_packed_file_that_is_not_the_network_is_not_left(
    tmp_path, checkpoint, monkeypatch, what, values
):
    change, message = DAMAGE[what]
    checkpoint.state_dict["0.bias"][0] = 0.0
    monkeypatch.setattr(
        packing, "pack", lambda state, *rest, **more: pack(change(state), *rest, **more)
    )
    (tmp_path / "m.lpss").write_bytes(b"old")
    with pytest.raises(RunError, match=message):
        export_pack(checkpoint, tmp_path / "m.lpss", values=values)
    assert (tmp_path / "m.lpss").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["m.lpss", "m.pt"]


def test_other_outputs_of_exact_weights_are_refused(tmp_path, checkpoint):
    with pytest.raises(RunError, match="gives other outputs"):
        export_pack(
            checkpoint,
            tmp_path / "m.lpss",
            values="fp32",
            reference=Reference(sparse(seed=1), ModelInfo(""), blobs()),
        )
    assert os.listdir(tmp_path) == ["m.pt"]


def test_rounding_in_closed_form():
    third = torch.tensor([[1 / 3, 0.0, -1.0]])
    # binary16 has 11 digits: 1/3 = 0.0101…₂ becomes 1365 / 4096.
    assert round_to_code(third, "fp16")[0, 0].item() == 1365 / 4096
    assert round_to_code(third, "bf16")[0, 0].item() == 171 / 512
    assert round_to_code(third, "int8-rows")[0].tolist() == pytest.approx([42 / 127, 0, -1])
    # Far below binary16's range the scale keeps all 11 digits.
    assert round_to_code(third * 2.0**-60, "fp16-rows")[0, 0].item() == 1365 / 4096 * 2.0**-60


def test_unpacking_gives_safetensors_with_the_metadata(tmp_path, checkpoint):
    export_pack(checkpoint, tmp_path / "m.lpss", values="fp32")
    result = unpack_file(tmp_path / "m.lpss")
    assert result.path == str(tmp_path / "m.safetensors")
    back = read(tmp_path / "m.safetensors")
    assert back.meta == metadata.for_export(META)
    assert all(torch.equal(back.state_dict[n], t) for n, t in checkpoint.state_dict.items())
    with pytest.raises(InputError, match="already exists"):
        unpack_file(tmp_path / "m.lpss")
    unpack_file(tmp_path / "m.lpss", force=True)
    with pytest.raises(InputError, match="is not a packed file"):
        unpack_file(tmp_path / "m.pt", tmp_path / "y.safetensors")


def test_safetensors_name_their_source(tmp_path, checkpoint):
    export_safetensors(checkpoint, tmp_path / "m.safetensors")
    about = read(tmp_path / "m.safetensors").about
    weights = [t for n, t in checkpoint.state_dict.items() if n in META["weights"]]
    zeros = sum(int((t == 0).sum()) for t in weights) / sum(t.numel() for t in weights)
    assert float(about["sparsity"]) == pytest.approx(zeros)
    assert (about["method"], json.loads(about["p"])) == ("lpss", {"0.weight": 1.2})
    assert about["source_sha256"] == sha256(tmp_path / "m.pt")


def test_a_bare_state_dict_gets_no_metadata(tmp_path):
    checkpoint = Checkpoint(tmp_path / "none.pt", {"w": torch.ones(2, 2)})
    export_pack(checkpoint, tmp_path / "w.lpss")
    back = read(tmp_path / "w.lpss")
    assert (back.meta, back.about) == ({}, {"values": "fp16"})


@pytest.mark.parametrize("about", [{}, {"values": "fp8"}, {"values": ["fp16"]}, {"values": None}])
def test_a_packed_file_need_not_say_which_values_were_asked_for(tmp_path, monkeypatch, about):
    state = {"w.weight": torch.eye(3), "w.bias": torch.ones(3)}
    write = container.write
    monkeypatch.setattr(container, "write", lambda meta, _, *rest: write(meta, about, *rest))
    (tmp_path / "w.lpss").write_bytes(pack(state, {}, ["w.weight"]))
    assert read(tmp_path / "w.lpss").about == about
    assert report(tmp_path / "w.lpss").bound_values == "fp16"
    found = export_job.sizes_of(tmp_path / "w.lpss", Request(), [])
    assert (found[-1].name, found[-1].values) == ("pack", "fp16")


def test_entropy_in_closed_form():
    assert [sizes.entropy(d) for d in (0.0, 1.0, 0.5)] == [0, 0, 1]
    assert sizes.entropy(0.25) == pytest.approx(2 - 0.75 * math.log2(3))


def test_the_bound_in_closed_form(tmp_path):
    weight = torch.zeros(100, 80)
    weight[:50] = 1.0
    state = {"w": weight, "bias": torch.ones(100), "steps": torch.tensor(1)}
    rest = 4 * 100 + 8
    biases = {"w.weight": weight, "w.bias": torch.ones(100)}
    for values in CHOICES:
        whole = sizes.bound(biases, ["w.weight"], values) - sizes.bound(
            {"w.weight": weight}, ["w.weight"], values
        )
        assert whole == 100 * {"fp32": 4}.get(values, 2)
    for values, size in {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}.items():
        assert sizes.bound(state, ["w"], values) == 1000 + size * 4000 + rest
    assert sizes.bound({"w": weight.half()}, ["w"], "fp32") == 1000 + 2 * 4000
    assert sizes.bound({"w": torch.zeros(9, 9)}, ["w"], "fp16") == 0
    assert sizes.dense_bytes({**state, "w": weight.half()}) == 4 * 8000 + rest
    export_pack(Checkpoint(tmp_path / "x", state), tmp_path / "x.lpss", values="int8")
    found = report(tmp_path / "x.lpss")
    assert (found.bound_bytes, found.bound_values, found.kind) == (
        1000 + 4000 + rest,
        "int8",
        "pack",
    )


def test_the_size_table(tmp_path, checkpoint):
    names = list(META["weights"])
    packed = export_pack(checkpoint, tmp_path / "m.lpss")
    masked = export_safetensors(checkpoint, tmp_path / "m.safetensors")
    written = [("pack", packed.bytes, "fp16"), ("safetensors", masked.bytes, "fp32")]
    rows = sizes.table(checkpoint.state_dict, names, written)
    assert [row.name for row in rows] == [
        "dense fp32", "safetensors", "safetensors + zstd -19", "pack"
    ]  # fmt: skip
    dense = sizes.dense_bytes(checkpoint.state_dict)
    assert rows[0].bytes == dense
    for row in rows:
        bound = sizes.bound(checkpoint.state_dict, names, row.values)
        assert row.against_dense == dense / row.bytes
        assert row.against_bound == row.bytes / bound
    assert rows[3].bytes < rows[2].bytes < rows[1].bytes
    assert [r.name for r in sizes.table(checkpoint.state_dict, names, [])] == [
        "dense fp32", "safetensors", "safetensors + zstd -19"
    ]  # fmt: skip
    nothing = sizes.table({"w": torch.zeros(4, 5)}, ["w"], [])
    assert [row.against_bound for row in nothing] == [None] * 3
    assert size_table(nothing).columns[-1]._cells == ["-"] * 3


def difference(a, b) -> verify.Difference:
    return verify.compare(torch.tensor(a), torch.tensor(b), "w")


def test_two_tensors_in_closed_form():
    assert difference([0.0, 1, 2], [-0.0, 1, 2.5]) == verify.Difference(
        "w", "", 3, 1, 0.5, (1, 1), True
    )
    moved = difference([0.0, 1.0], [1.0, 0.0])
    assert (moved.different, moved.zeros, moved.same_zeros) == (2, (1, 1), False)
    assert difference([math.nan], [math.nan]).different == 0
    assert difference([math.nan, 1.0], [1.0, 1.0]).largest == math.inf
    assert difference([math.inf], [math.inf]).different == 0
    assert difference([math.inf], [1.0]).largest == math.inf
    assert difference([2**62], [2**62 + 2**20]).largest == 2**20
    assert difference([True], [False]).largest == 1
    assert "shapes (1,) and (2,)" in difference([1.0], [1.0, 2.0]).what
    assert "types float32 and int64" in difference([1.0], [1]).what
    assert difference([[]], [[]]) == verify.Difference("w", "", same_zeros=True)


def test_files_are_verified_tensor_by_tensor(tmp_path, checkpoint):
    other = {**checkpoint.state_dict}
    other["0.bias"] = other["0.bias"] + 0.25
    torch.save(other, tmp_path / "b.pt")
    a, b = tmp_path / "m.pt", tmp_path / "b.pt"
    assert verify.verify_files(a, a, Request()).equal
    found = verify.verify_files(a, b, Request())
    assert [x.name for x in found.tensors if x.different] == ["0.bias"]
    assert not found.equal
    assert found.predictions is None  # the data are unknown
    assert verify.verify_files(a, b, Request(), tolerance=0.2501).equal
    assert not verify.verify_files(a, b, Request(), tolerance=0.2499).equal
    other.pop("0.bias")
    torch.save({**other, "new": torch.ones(2)}, b)
    found = verify.verify_files(a, b, Request(), tolerance=1e9)
    assert not found.equal
    assert {x.name: x.what for x in found.tensors if x.what} == {
        "0.bias": "only in A", "new": "only in B"
    }  # fmt: skip


def test_large_integers_are_compared_exactly():
    close = verify.compare(torch.tensor(2**62), torch.tensor(2**62 + 1), "steps")
    assert (close.different, close.largest) == (1, 0)
    assert not verify.Verification("a", "b", 0.0, [close]).equal


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_impossible_tolerances_are_refused(tmp_path, tolerance):
    with pytest.raises(InputError, match="--tolerance"):
        verify.verify_files(tmp_path / "a", tmp_path / "b", Request(), tolerance)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained checkpoint and its ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "m.pt"
    training_job.train(Request(path, epochs=1, sparsity=0.9))
    export_file(path, Request(path), ExportOptions(("onnx",), onnx=OnnxOptions(latency=False)))
    return path, folder / "m.onnx"


def test_an_onnx_file_is_compared_by_its_outputs(exported):
    found = verify.verify_files(*exported, Request())
    assert (found.equal, found.by_outputs, found.tensors) == (True, True, [])
    assert found.tolerance == verify.ROUNDING
    assert found.predictions.changed == 0
    assert found.predictions.examples > 100
    accuracy = found.predictions.metrics["accuracy"]
    assert accuracy[0] == accuracy[1] > 0.5


def test_an_onnx_file_of_another_network_is_not_equal(exported, tmp_path):
    checkpoint = torch.load(exported[0], weights_only=True)
    state = checkpoint["state_dict"]
    bias = next(reversed([name for name in state if name.endswith("bias")]))
    state[bias] = state[bias] + torch.tensor([9.0] + [0.0] * (len(state[bias]) - 1))
    torch.save(state, tmp_path / "other.pt")
    arch = checkpoint["lpss"]["arch"]
    found = verify.verify_files(
        tmp_path / "other.pt", exported[1], Request(arch=arch, data="digits")
    )
    assert not found.equal
    assert found.predictions.changed > 0
    assert verify.verify_files(*exported, Request(), tolerance=0.0).predictions.changed == 0


def test_an_onnx_file_may_differ_by_what_rounding_explains(exported, monkeypatch):
    monkeypatch.setattr(verify, "ROUNDING", 0.0)
    largest = verify.verify_files(*exported, Request()).predictions.largest
    assert 0 < largest < 1e-5
    for rounding, equal in ((largest / 2, False), (2 * largest, True)):
        monkeypatch.setattr(verify, "rounding_tolerance", lambda *_, bound=rounding: bound)
        found = verify.verify_files(*exported, Request())
        assert (found.equal, found.tolerance) == (equal, rounding)
        assert not verify.verify_files(*exported, Request(), largest / 2).equal


def test_an_onnx_file_comes_second_and_holds_its_tensors(exported, tmp_path):
    path, onnx_path = exported
    with pytest.raises(InputError, match="does not hold tensors") as error:
        verify.verify_files(onnx_path, path, Request())
    assert "checkpoint first" in error.value.do
    with pytest.raises(InputError, match="there is no file"):
        verify.verify_files(path, tmp_path / "none.onnx", Request())
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="cannot run"):
        verify.verify_files(path, tmp_path / "text.onnx", Request())
    proto = onnx.load(onnx_path)
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    entry = proto.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    proto.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "far.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="in other files"):
        verify.verify_files(path, tmp_path / "far.onnx", Request())
    other = onnx.load(onnx_path)
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    (tmp_path / "seven.onnx").write_bytes(other.SerializeToString())
    with pytest.raises(InputError, match="cannot run"):
        verify.verify_files(path, tmp_path / "seven.onnx", Request())
