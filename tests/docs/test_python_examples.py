"""Every Python block of the documents runs, and leaves exactly the zeros it promises.

Blocks that begin with the name of a file are for the commands of their document: test_docs_run.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import blobs, network
from test_documents import files_of
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
            if not re.match(r"# [\w/]+\.py\n", block):
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


@pytest.fixture
def methods_of_documents(tmp_path, monkeypatch):
    """The example of a method lies where it is told to lie, and is gone after the test."""
    from lpss_cli import methods
    from lpss_cli.training import method

    method.registry()  # all others are there before this one
    (example,) = files_of("add_a_method.md").items()
    (tmp_path / Path(example[0]).name).write_text(example[1])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setattr(method.Method, "registry", dict(method.Method.registry))
    method.registry.cache_clear()
    yield Path(example[0]).stem
    del sys.modules[f"{methods.__name__}.{Path(example[0]).stem}"]
    method.registry.cache_clear()


@pytest.mark.parametrize("options", [{}, {"exponent": 3.0}])
def test_the_example_of_a_method_is_found_and_exact(methods_of_documents, options):
    import lpss_cli

    data, model = blobs(), network()
    train, test = (data.train.x, data.train.y), (data.test.x, data.test.y)
    result = lpss_cli.sparsify(
        model, train, test, method=methods_of_documents, epochs=12, batch_size=16, **options
    )
    assert result.report.zeros == round(0.9 * 640)
    assert result.after["accuracy"] > 0.7
    with pytest.raises(lpss_cli.InputError, match="out of range"):
        lpss_cli.sparsify(model, train, method=methods_of_documents, exponent=11)
    with pytest.raises(lpss_cli.InputError, match="not an option"):
        lpss_cli.sparsify(model, train, method=methods_of_documents, begin=0.2)


def test_there_are_blocks_to_run():
    assert sum("result" in param.values[0] for param in blocks()) >= 6
