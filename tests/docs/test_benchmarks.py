"""Programs of benchmarks/ that need another machine: at least they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks are not installed")
SMALL = (
    "--network", "lenet300", "--arch", "lenet300", "--examples", "512", "--batch-size", "64",
    "--rounds", "2", "--epoch-rounds", "1",
)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu


def test_the_program_for_gpus_measures_steps_and_epochs(gpu, tmp_path):
    gpu.main(["--device", "cpu", *SMALL, "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [len(found[part]) for part in ("step", "epoch")] == [1 + len(gpu.EVERY_P), 2]
    for part in ("step", "epoch"):
        assert found[part][0]["ratio"] == 1
        assert all(row["median_ms"] > 0 < row["ratio"] for row in found[part])
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("lenet300") == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(gpu, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err
