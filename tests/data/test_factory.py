"""Data from a Python function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from data_helpers import everything, refused

from lpss_cli.data import DatasetSource, DataSpec, TensorSource, is_import_path, load

PRELUDE = "import numpy as np, torch\nx, y = torch.rand(8, 3), torch.arange(8) % 2\n"


def factory(root: Path, body: str) -> DataSpec:
    (root / "mine.py").write_text(PRELUDE + body)
    return DataSpec(f"{root / 'mine.py'}:make")


def test_import_paths_are_recognized():
    assert is_import_path("some/file.py:factory")
    assert not any(
        map(is_import_path, ("digits", "file.py", "file.py:", "a.csv:x", "f.py:a-b", ""))
    )


def test_factory_of_pairs(tmp_path):
    (tmp_path / "neighbour.py").write_text("SIZE = 4\n")
    body = """
from neighbour import SIZE
def make(): return (x, y), (x[:SIZE].numpy(), y[:SIZE].numpy())
"""
    spec = factory(tmp_path, body)
    path = list(sys.path)
    data = load(spec)
    assert sys.path == path
    assert (len(data.train), len(data.test)) == (8, 4)
    assert (data.task.name, data.outputs, data.classes) == ("classification", 2, ("0", "1"))
    assert (data.input_shape, data.name) == ((3,), "make")
    assert everything(data.train)[0].dtype == torch.float32


def test_factory_of_regression_and_tokens(tmp_path):
    tokens = factory(tmp_path, "def make(): return (x.double(), x[:, 0].double()), (x, x[:, 0])\n")
    data = load(tokens)
    assert (data.task.name, data.outputs) == ("regression", 1)
    assert everything(data.train)[1].dtype == torch.float32
    spec = factory(tmp_path, "def make(): return ((y[:, None], y),) * 2\n")
    assert everything(load(spec).train)[0].dtype == torch.int64


def test_factory_of_datasets(tmp_path):
    body = """
class Rows:
    def __len__(self): return 8
    def __getitem__(self, i): return x[i].double(), int(y[i])
def make(): return {"train": Rows(), "test": torch.utils.data.TensorDataset(x, y), "outputs": 2}
"""
    data = load(factory(tmp_path, body))
    assert isinstance(data.train, DatasetSource)
    assert isinstance(data.test, TensorSource)
    assert everything(data.train)[0].dtype == torch.float32
    assert data.outputs == 2
    assert len(data.holdout(0.25, 0).test) == 2  # unstratified: nobody knows the labels


def test_factory_with_its_own_everything(tmp_path):
    body = """
def make():
    return dict(
        train=(x, x), test=(x, x), outputs=3, input_shape=[3],
        loss=lambda o, t: (o - t).abs().mean(),
        metrics=lambda o, t: {"worst": float((o - t).max())},
        primary="worst", higher_is_better=False, augment=lambda x, g: x + 1)
"""
    data = load(factory(tmp_path, body))
    task = data.task
    assert (task.name, task.primary, task.higher_is_better) == ("custom", "worst", False)
    assert task.loss(torch.ones(2, 3), torch.zeros(2, 3)) == 1
    assert task.metrics(torch.ones(2, 3), torch.zeros(2, 3)) == {"worst": 1.0}
    x = torch.zeros(1, 3)
    assert data.augment is not None
    assert torch.equal(data.augment(x, torch.Generator()), x + 1)
    assert (data.outputs, data.input_shape) == (3, (3,))


def test_factory_with_a_loss_alone_or_another_primary(tmp_path):
    body = "def make(): return dict(train=(x, x), test=(x, x), loss=lambda o, t: (o - t).mean())\n"
    task = load(factory(tmp_path, body)).task
    assert (task.primary, task.higher_is_better) == ("loss", False)
    assert task.metrics(torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3)) == {"loss": 1.0}
    balanced = "def make(): return dict(train=(x, y), test=(x, y), primary='balanced_accuracy')\n"
    assert load(factory(tmp_path, balanced)).task.primary == "balanced_accuracy"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "has no function 'make'"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "failed with SystemExit: 3"),
        ("def make(): raise KeyError('a\\nb')", "raised KeyError: 'a\\nb'"),
        ("def make(a): pass", "raised TypeError"),
        ("def make(): return 3", "returned a value of type int"),
        ("def make(): return x, y, x", "returned a tuple of 3"),
        ("def make(): return x, x", "the train part is a value of type Tensor"),
        ("def make(): return {'train': (x, y)}", "returned no 'test'"),
        ("def make(): return {'trian': 1}", "unknown key 'trian'"),
        ("def make(): return dict(train=1, test=1, loss=3)", "'loss' is a value of type int"),
        ("def make(): return ((x, 3),) * 2", "y of train is a value of type int"),
        ("def make(): return ((x, np.array(['a'] * 8)),) * 2", "y of train holds <U1"),
        ("def make(): return ((x * torch.nan, y),) * 2", "x of train holds NaN"),
        ("def make(): return ((x[:0], y[:0]),) * 2", "the train part is empty"),
        ("def make(): return ((x, y[:3]),) * 2", "8 inputs but 3 targets"),
        ("def make(): return (x, y), (x[:, :2], y)", "test examples (2,)"),
        ("def make(): return ((x, y - 1),) * 2", "values -1 to 0"),
        ("def make(): return dict(train=(x, y), test=(x, y), outputs=1)", "values 0 to 1"),
        (
            "def make(): return dict(train=(x, y), test=(x, y), outputs=3, classes='ab')",
            "2 classes",
        ),
        ("def make(): return dict(train=(x, y), test=(x, y), metrics=len)", "no primary"),
        ("def make(): return dict(train=(x, y), test=(x, y), primary='f1')", "no metric 'f1'"),
        ("class D(list): pass\ndef make(): return (D(), D())", "the train part is a D of 0"),
        (
            "class D:\n  def __len__(s): return 2\n  def __getitem__(s, i): return x[i], 0\n"
            "def make(): return D(), D()",
            "number of classes of a Dataset is unknown",
        ),
        (
            "class D:\n  def __len__(s): return 2\n  def __getitem__(s, i): return 3\n"
            "def make(): return D(), D()",
            "do not fit into a batch",
        ),
    ],
)
def test_factory_errors(tmp_path, body, what):
    refused(factory(tmp_path, body), what)


def test_a_missing_factory_file_and_a_function_of_nearly_that_name(tmp_path):
    refused(DataSpec(f"{tmp_path}/none.py:make"), "there is no file")
    spec = factory(tmp_path, "def maker(): pass\n")
    refused(spec, "has no function 'make'", "did you mean 'maker'?")


def test_an_error_of_ours_passes_through_a_factory(tmp_path):
    body = "from lpss_cli.data import load, DataSpec\ndef make(): return load(DataSpec('a.csv'))\n"
    refused(factory(tmp_path, body), "there is no file or folder a.csv")
