"""Nothing in a pickle runs: every known way to run something, in every container and command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults import STATE, archive, digest, lpss, two_lines

from lpss_cli.checkpoints import artifact

HERE = Path(__file__).parents[1]


def test_no_payload_runs_whichever_command_reads_the_file(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "gadgets.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["gadgets"] >= 30
    assert found["runs"] == found["gadgets"] * 3 * 9
    assert found["dead"] == []  # every payload runs if pickle itself loads it
    assert found["executed"] == []
    assert found["wrong"] == []
    assert found["outputs unchanged"]


@pytest.mark.parametrize("forced", ["0", "1"])
def test_a_saved_training_state_is_examined_too(tmp_path, monkeypatch, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    monkeypatch.chdir(tmp_path)
    Path("model.pt.partial").write_bytes(archive(b"cos\nmkdir\n(X\x04\x00\x00\x00eviltR."))
    before = digest(Path("model.pt.partial"))
    code, _, err = lpss("train", "--resume", "--epochs", "1", "--quiet")
    assert code == 2
    assert two_lines(err)
    assert "model.pt.partial cannot be read" in err
    assert sorted(os.listdir()) == ["model.pt.partial"]
    assert digest(Path("model.pt.partial")) == before


def test_code_named_in_a_record_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("open('evil', 'w')")
    artifact.save(Path("a.pt"), STATE, {"arch": "net.py:make", "data": {"name": "digits"}})
    artifact.save(Path("d.pt"), STATE, {"arch": "mlp:6-4-3", "data": {"name": "net.py:make"}})
    for file in ("a.pt", "d.pt"):
        for command in ("eval", "export", "sparsify", "ticket"):
            code, _, err = lpss(command, file, "--quiet")
            assert code == 2
            assert two_lines(err)
    assert not Path("evil").exists()


def test_a_trusted_pickle_needs_the_flag(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "m.pt")
    code, _, err = lpss("report", tmp_path / "m.pt")
    assert (code, two_lines(err)) == (2, True)
    assert "--trust-pickle" in err
    assert lpss("report", tmp_path / "m.pt", "--trust-pickle")[0] == 0
