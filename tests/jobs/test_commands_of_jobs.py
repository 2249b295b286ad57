"""Whole jobs on real and made-up data, checked by independent means."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import blobs, rewrite
from torch import nn

from lpss_cli.checkpoints import loading
from lpss_cli.errors import InputError, RunError
from lpss_cli.export.options import ExportOptions
from lpss_cli.jobs import evaluate, sparse_training, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.export import export_file
from lpss_cli.jobs.resolve import preprocessing_notes
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.training.trainer import Trainer

SHARED = Path(os.environ.get("LPSS_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
needs_mnist = pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="MNIST is not at hand")
needs_climate = pytest.mark.skipif(
    not (SHARED / "climate.csv").is_file(), reason="climate.csv is not at hand"
)

NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
"""
# Runs in an interpreter that has never heard of lpss.
RUN_ONNX = """
import sys, numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1])
x = np.load(sys.argv[2])["x_test"]
for batch in (x[:1].astype(np.float32), x.astype(np.float32)):
    (out,) = session.run(None, {session.get_inputs()[0].name: batch})
    assert out.shape == (len(batch), 3)
assert "lpss_cli" not in sys.modules
print((out.argmax(1) == np.load(sys.argv[2])["y_test"]).mean())
"""


class Notes(JobCallback):
    def __init__(self):
        self.warnings, self.before = [], None

    def on_warning(self, text):
        self.warnings.append(text)

    def on_before(self, metrics, primary):
        self.before = metrics[primary]


@pytest.fixture
def blob_file(tmp_path):
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((3, 6))
    y = np.arange(600) % 3
    x = (centres[y] + rng.standard_normal((600, 6))).astype(np.float32)
    path = tmp_path / "blobs.npz"
    np.savez(path, x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])
    return path


def test_a_plain_pytorch_state_dict_goes_through_all_of_it(tmp_path, blob_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    torch.save(model.state_dict(), "plain.pt")
    request = Request(Path("sparse.pt"), data="blobs.npz", arch="net.py:make", sparsity=0.75)
    outcome = sparse_training.sparsify_checkpoint(Path("plain.pt"), request)
    state = torch.load("sparse.pt", weights_only=True)["state_dict"]
    zeros = sum(int((state[n] == 0).sum()) for n in ("0.weight", "3.weight"))
    assert zeros == outcome.report.zeros == round(0.75 * (6 * 32 + 32 * 3))
    assert outcome.after["accuracy"] > 0.85
    written = export_file(Path("sparse.pt"), Request(Path("x"), arch="net.py:make"))
    assert [w.kind for w in written] == ["safetensors", "onnx", "pack"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONNX, "sparse.onnx", "blobs.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(outcome.after["accuracy"], abs=0.02)
    # What was exported can be sparsified further, and its zeros stay.
    more = Request(Path("more.pt"), data="blobs.npz", arch="net.py:make", sparsity=0.9)
    again = sparse_training.sparsify_checkpoint(Path("sparse.safetensors"), more)
    assert again.report.zeros == round(0.9 * 288)
    first = torch.load("more.pt", weights_only=True)["state_dict"]["0.weight"] == 0
    assert (first | (state["0.weight"] != 0)).all()


def test_code_named_inside_a_checkpoint_is_never_imported(tmp_path, blob_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    request = Request(Path("a.pt"), data="blobs.npz", arch="net.py:make", epochs=1)
    training_job.train(request)
    Path("net.py").write_text("raise SystemExit('imported')")
    with pytest.raises(InputError, match="not imported unless you ask for it") as error:
        evaluate.evaluate_file(Path("a.pt"), Request(Path("x")))
    assert "--arch net.py:make" in error.value.do
    Path("data.py").write_text("raise SystemExit('imported')")
    rewrite(Path("a.pt"), Path("b.pt"), lambda meta: meta["data"].update(name="data.py:make"))
    with pytest.raises(InputError, match=r"trained on data\.py:make"):
        evaluate.evaluate_file(Path("b.pt"), Request(Path("x"), arch="mlp"))


def test_a_network_that_does_not_take_the_data_is_refused(tmp_path, blob_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.replace("Linear(6,", "Linear(7,"))
    request = Request(Path("a.pt"), data="blobs.npz", arch="net.py:make", epochs=1)
    with pytest.raises(InputError, match=r"does not take inputs of shape \(6,\)"):
        training_job.train(request)
    assert not Path("a.pt").exists()
    torch.save(nn.Sequential(nn.Linear(7, 3)).state_dict(), "bare.pt")
    Path("net.py").write_text(
        "from torch import nn\n"
        "class Named(nn.Sequential):\n"
        "    def forward(self, x): return {'scores': super().forward(x[:, :1].expand(-1, 7))}\n"
        "def seven(): return nn.Sequential(nn.Linear(7, 3))\n"
        "def named(): return Named(nn.Linear(7, 3))\n"
    )
    for arch, what in (("seven", "does not take inputs of shape"), ("named", "returns a dict")):
        with pytest.raises(InputError, match=what):
            evaluate.evaluate_file(Path("bare.pt"), replace(request, arch=f"net.py:{arch}"))


def test_a_bare_checkpoint_needs_arch_and_data(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(nn.Linear(64, 10).state_dict(), path)
    with pytest.raises(InputError, match="not a network that lpss knows"):
        evaluate.evaluate_file(path, Request(path))
    with pytest.raises(InputError, match="which data"):
        evaluate.evaluate_file(path, Request(path, arch="mlp"))
    with pytest.raises(InputError, match=r"does not fit mlp:64-300-100-10: fc1.weight is missing"):
        evaluate.evaluate_file(path, Request(path, arch="mlp", data="digits"))


def test_training_starts_from_exactly_the_given_function(tmp_path, monkeypatch):
    dense = Request(tmp_path / "dense.pt", epochs=2)
    trained = training_job.train(dense)
    seen = {}
    original = Trainer.train

    def spy(trainer, *args):
        seen.update({k: v.clone() for k, v in trainer.run.model.state_dict().items()})
        return original(trainer, *args)

    monkeypatch.setattr(Trainer, "train", spy)
    notes = Notes()
    sparse_training.sparsify_checkpoint(dense.out, Request(tmp_path / "s.pt", epochs=1), notes)
    for name, tensor in loading.read(dense.out).state_dict.items():
        assert torch.equal(tensor, seen[name])
    assert notes.before == trained.after["accuracy"]
    assert notes.warnings == []


def test_a_checkpoint_that_claims_more_than_it_does_is_called_out(tmp_path):
    training_job.train(Request(tmp_path / "a.pt", epochs=2))
    claim = {"accuracy": 0.999}
    rewrite(
        tmp_path / "a.pt", tmp_path / "b.pt", lambda meta: meta["metrics"]["after"].update(claim)
    )
    notes = Notes()
    sparse_training.sparsify_checkpoint(
        tmp_path / "b.pt", Request(tmp_path / "s.pt", epochs=0), notes
    )
    assert "the checkpoint claims 0.9990" in notes.warnings[0]


def test_two_runs_with_the_same_seed_write_the_same_tensors(tmp_path):
    for name in ("a.pt", "b.pt"):
        training_job.train(Request(tmp_path / name, epochs=2, sparsity=0.8, seed=7))
    a, b = (loading.read(tmp_path / name).state_dict for name in ("a.pt", "b.pt"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_record_holds_everything_the_run_used(tmp_path):
    options = {"p": ("0.5", "fc2*=1.2")}
    request = Request(tmp_path / "a.pt", sparsity=0.8, epochs=2, options=options, command="lpss x")
    training_job.train(request)
    meta = torch.load(tmp_path / "a.pt", weights_only=True)["lpss"]
    assert meta["command"] == "lpss x"
    assert meta["method"] == "lpss"
    assert meta["settings"]["seed"] == 0
    assert len(meta["data_fingerprint"]) == 64
    assert {"torch", "lpss", "python"} <= set(meta["versions"])
    assert [w.get("p") for w in meta["weights"].values()] == [0.5, 1.2, 0.5]
    assert [e["epoch"] for e in meta["history"]] == [1, 2]
    # Before training no weight is zero, and none is far from its start.
    counts = {name: sum(one["counts"]) for name, one in meta["histograms"].items()}
    assert counts == {"fc1.weight": 19_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
    assert meta["history"][-1]["sparsity"] == 0.8


def test_layers_that_lose_everything_are_warned_of_by_name(tmp_path):
    notes = Notes()
    options = {"ranking": "magnitude"}
    request = Request(tmp_path / "a.pt", sparsity=0.99997, epochs=1, options=options)
    outcome = training_job.train(request, notes)
    empty = [layer.name for layer in outcome.report.layers if layer.zeros == layer.weights]
    assert empty  # two weights are left for three layers
    assert [w.split()[0] for w in notes.warnings] == empty
    assert "has lost all its weights" in notes.warnings[0]


def test_holdout_never_touches_the_test_split(tmp_path, monkeypatch):
    from lpss_cli.jobs import resolve

    loaded = resolve.load

    class Untouchable:
        def __getattr__(self, name):
            raise AssertionError("the test split was used")

    def poisoned(spec):
        data = loaded(spec)
        object.__setattr__(data, "test", Untouchable())
        return data

    monkeypatch.setattr(resolve, "load", poisoned)
    outcome = training_job.train(Request(tmp_path / "a.pt", epochs=1, holdout=0.2))
    assert outcome.measured_on == "holdout"
    with pytest.raises(AssertionError, match="test split"):
        training_job.train(Request(tmp_path / "b.pt", epochs=1))


def test_a_failed_export_is_a_run_error_and_leaves_no_file(tmp_path, monkeypatch):
    from lpss_cli.export.onnx import export

    training_job.train(Request(tmp_path / "a.pt", epochs=1))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    monkeypatch.setattr(export, "rounding_tolerance", lambda *_: -1.0)
    with pytest.raises(RunError, match="differ"):
        export_file(tmp_path / "a.pt", Request(tmp_path / "x"), ExportOptions(("onnx",)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    with pytest.raises(InputError, match="--format 'onx' is not a choice"):
        export_file(tmp_path / "a.pt", Request(tmp_path / "x"), ExportOptions(("onx",)))


@needs_climate
def test_climate_reports_accuracy_and_balanced_accuracy(tmp_path):
    table = {"target": "outcome", "drop": ["study", "run"]}
    request = Request(
        tmp_path / "a.pt", data=str(SHARED / "climate.csv"), data_overrides=table, epochs=5
    )
    outcome = training_job.train(request)
    assert set(outcome.after) == {"accuracy", "balanced_accuracy"}
    assert outcome.report.meta["arch"] == "mlp:18-300-100-2"


@needs_mnist
def test_mnist_sparse_zeros_counted_independently(tmp_path):
    data = {"data_dir": str(SHARED)}
    dense = Request(tmp_path / "d.pt", data="mnist", data_overrides=data, arch="lenet300", epochs=1)
    training_job.train(dense)
    request = Request(tmp_path / "s.pt", sparsity=0.9, epochs=1, data_overrides=data)
    outcome = sparse_training.sparsify_checkpoint(dense.out, request)
    state = torch.load(request.out, weights_only=True)["state_dict"]
    weights = [t.numpy() for name, t in state.items() if name.endswith("weight")]
    assert sum(w.size for w in weights) == 266_200
    assert sum(int((w == 0).sum()) for w in weights) == 239_580
    assert outcome.after["accuracy"] > 0.95


@pytest.mark.parametrize(
    ("preprocessing", "notes"),
    [
        ({"kind": "array", "mean": [0.0], "std": [1.0]}, ["inputs are used as they are"]),
        ({"kind": "image", "mean": [0.5], "std": [0.25]}, ["standardized by mean/std 0.5/0.25;"]),
        (
            {
                "kind": "image",
                "mean": [0.5],
                "std": [0.25],
                "image_size": [64, 64],
                "resize_shorter_side": 73,
                "interpolation": "bilinear",
            },
            ["images: shorter side to 73 (bilinear), center of 64x64, standardized by mean/std"],
        ),
        ({"kind": "array", "mean": [1.0] * 9, "std": [2.0] * 9}, ["1/2, 1/2, 1/2, … (9 in total)"]),
        ({"kind": "table", "mean": [1.0], "std": [2.0]}, []),
        ({"kind": "factory"}, []),
    ],
)
def test_what_is_done_to_the_inputs_is_said(preprocessing, notes):
    data = blobs()
    object.__setattr__(data, "preprocessing", preprocessing)
    said = preprocessing_notes(data)
    assert len(said) == len(notes)
    assert all(note in text for note, text in zip(notes, said, strict=True))
