"""The doctor says what works, what is missing and what to do about it."""

import json
import sys
from importlib import metadata

import torch

from lpss_cli.jobs import doctor
from lpss_cli.optim import native
from lpss_cli.version import __version__


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_the_environment_of_the_tests_is_fine(lpss):
    code, out, _ = lpss("doctor", "--json")
    findings = json.loads(out)["findings"]
    assert code == 0
    assert {f["name"] for f in findings} >= {*doctor.REQUIRED, "CPU", "loading", "files"}
    assert not [f for f in findings if f["state"] == "wrong"]
    assert metadata.version("torch") in out
    code, out, _ = lpss("doctor")
    assert code == 0
    assert "free in" in out


def test_a_missing_package_is_named(monkeypatch, lpss):
    monkeypatch.setitem(doctor.REQUIRED, "no-such-thing", "no_such_thing")
    code, out, _ = lpss("doctor")
    assert code == 1
    assert "pip install no-such-thing" in out


def test_a_package_that_does_not_import_is_wrong(monkeypatch, tmp_path):
    (tmp_path / "broken_thing.py").write_text("raise OSError('libfoo.so is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(doctor.REQUIRED, "broken", "broken_thing")
    found = {f.name: f for f in doctor.examine(tmp_path)}
    assert (found["broken"].state, "libfoo.so is missing" in found["broken"].text) == (
        "wrong",
        True,
    )


def test_without_a_compiler_steps_take_longer(monkeypatch, tmp_path):
    assert states(doctor.examine(tmp_path))["compiler"] in ("fine", "note")
    monkeypatch.setattr(native, "library", lambda: None)
    found = {f.name: f for f in doctor.examine(tmp_path)}
    assert found["compiler"].state == "note"
    assert "LPSS_COMPILE=0" in found["compiler"].text


def test_an_unsafe_environment_is_noted(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert states(doctor.examine(tmp_path))["loading"] == "note"


def test_free_disk_space(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_MIN_FREE", 1 << 80)
    assert states(doctor.examine(tmp_path))["files"] == "note"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert states(doctor.examine(tmp_path))["files"] == "wrong"


def test_the_version_names_torch_and_the_device(lpss):
    code, out, _ = lpss("--version")
    assert code == 0
    device = f"cuda: {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "cpu"
    python = ".".join(map(str, sys.version_info[:3]))
    assert out.strip() in (
        f"lpss {__version__}, torch {torch.__version__}, Python {python}, {device}",
        f"lpss {__version__}, torch {torch.__version__}, Python {python}, mps or cpu",
    )


def test_the_version_of_a_broken_installation(lpss, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, _ = lpss("--version")
    assert code == 0
    assert "no torch: ModuleNotFoundError" in out
