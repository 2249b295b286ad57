"""Every Python block of the documents runs, and leaves exactly the zeros it promises."""

import re
from pathlib import Path

import pytest
import torch
from helpers import blobs, network
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the docs are not installed")
# Packages that the examples are for and lpss does not need.
OPTIONAL = ("lightning", "accelerate")


def blocks():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S), 1):
            yield pytest.param(block, id=f"{document.name}-{number}")


# Lightning advises about workers, devices and its own dependencies' deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", list(blocks()))
def test_the_block_runs(block, tmp_path, monkeypatch):
    for package in OPTIONAL:
        if f"import {package}" in block or f"from {package}" in block:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    data = blobs()
    loader = DataLoader(TensorDataset(data.train.x, data.train.y), batch_size=16, shuffle=True)
    model = network()
    given = {
        "torch": torch,
        "model": model,
        "loader": loader,
        "train_loader": loader,
        "x_test": data.test.x,
        "y_test": data.test.y,
        "epochs": 12,
        "__name__": "example",
    }
    torch.manual_seed(0)
    exec(compile(block, "example", "exec"), given)  # what the documents tell people to run
    if "result" not in given:
        return
    zeros = sum(int((w == 0).sum()) for w in model.parameters() if w.dim() == 2)
    assert given["result"].report.zeros == zeros == round(0.9 * 640)
    accuracy = float((model.eval()(data.test.x).argmax(1) == data.test.y).float().mean())
    assert accuracy > 0.7


def test_there_are_blocks_to_run():
    assert sum("result" in param.values[0] for param in blocks()) >= 6
