"""Safetensors files hold every tensor bit for bit, or are not left."""

from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch

from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.errors import RunError
from lpss_cli.export.safetensors import export_safetensors

STATE = {
    "w": torch.tensor([[0.0, -0.0], [1.5, -2.0]]),
    "half": torch.tensor([0.0, 1.0, -3.0]).half(),
    "t": torch.arange(6.0).view(2, 3).T,
    "steps": torch.tensor(7),
    "nan": torch.tensor([float("nan")]),
}
STATE["tied"] = STATE["w"]


def test_safetensors_hold_every_tensor_and_the_facts(tmp_path):
    meta = {"arch": "mlp:2-2", "history": [{"loss": 1.0}] * 100}
    path = tmp_path / "m.safetensors"
    result = export_safetensors(Checkpoint(tmp_path / "m.pt", STATE, meta), path)
    assert (result.kind, result.bytes) == ("safetensors", path.stat().st_size)
    back = read(path)
    assert back.meta == {"arch": "mlp:2-2"}  # the history is left out
    assert set(back.state_dict) == set(STATE)
    for name, tensor in STATE.items():
        assert back.state_dict[name].dtype == tensor.dtype
        torch.testing.assert_close(
            back.state_dict[name], tensor, rtol=0, atol=0, equal_nan=True, check_stride=False
        )


@pytest.mark.parametrize(
    "change",
    [
        {"w": torch.tensor([[0.0, 0.0], [1.5, -2.0]])},  # the sign of a zero
        {"w": STATE["w"].flatten()},
        {"half": STATE["half"].bfloat16()},
        {"steps": torch.tensor(8)},
        {"more": torch.ones(1)},
    ],
)
def test_safetensors_written_differently_are_caught(tmp_path, monkeypatch, change):
    save = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda state, *a, **k: save({**state, **change}, *a, **k)
    )
    with pytest.raises(RunError, match="reads back"):
        export_safetensors(Checkpoint(tmp_path / "m.pt", STATE), tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []
