"""Files that are read one tensor at a time: the same numbers, bounded memory, changes noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import STATE, lpss, two_lines
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lpss_cli.checkpoints import artifact, loading
from lpss_cli.checkpoints.safetensors_file import DTYPES, TensorReader
from lpss_cli.errors import InputError
from lpss_cli.reporting.layers import measure
from lpss_cli.reporting.report import report
from lpss_cli.utils import arrays

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    save_file(STATE, tmp_path / "m.safetensors", metadata={"format": "pt"})
    return tmp_path / "m.safetensors"


def test_every_dtype_is_read_as_the_library_does(tmp_path):
    state = {}
    for name in DTYPES.values():
        dtype = getattr(torch, name)
        size = torch.empty(0, dtype=dtype).element_size()
        bits = torch.arange(24 * size, dtype=torch.uint8) % (2 if name == "bool" else 251)
        state[name] = bits.view(dtype).view(4, 6)
    state["none"] = torch.zeros(0, 3)
    state["one"] = torch.tensor(2.5)
    save_file(state, tmp_path / "m.safetensors")
    streamed, whole = (
        TensorReader(tmp_path / "m.safetensors"),
        load_file(tmp_path / "m.safetensors"),
    )
    assert set(streamed) == set(whole)
    assert len(streamed) == len(whole)
    for name, tensor in whole.items():
        found = streamed[name]
        assert (f"torch.{found.dtype.name}", found.shape) == (str(tensor.dtype), tensor.shape)
        assert found.tobytes() == arrays.to_numpy(tensor).tobytes(), name
        spec, expected = (
            [(t.shape, t.dim(), t.numel(), t.element_size(), t.is_floating_point())]
            for t in (streamed.specs[name], tensor)
        )
        assert spec == expected, name


def assert_same_report(path):
    """Check that a streamed file has the same report as the file in memory."""
    streamed, whole = loading.browse(path), loading.read(path)
    assert streamed.stream is not None
    assert streamed.notes == whole.notes
    assert report(streamed) == report(whole)


def test_a_streamed_file_has_the_same_report(path, tmp_path):
    assert_same_report(path)
    odd = {
        **STATE,
        "fc3.weight": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "fc4.weight": torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0]]),
        "count": torch.tensor(3),
        "empty.weight": torch.zeros(0, 4),
    }
    save_file({f"module.{name}": tensor for name, tensor in odd.items()}, path)
    assert_same_report(path)
    artifact.save(tmp_path / "a.pt", STATE, {"arch": "mlp:6-4-3", "weights": {"fc1.weight": {}}})
    assert lpss("export", tmp_path / "a.pt", "--format", "safetensors")[0] == 0
    assert_same_report(tmp_path / "a.safetensors")


def test_weights_stored_in_parts_are_not_streamed(tmp_path):
    parts = {"fc.weight_orig": torch.ones(2, 3), "fc.weight_mask": torch.eye(2, 3)}
    save_file(parts, tmp_path / "m.safetensors")
    assert loading.browse(tmp_path / "m.safetensors").stream is None
    assert report(tmp_path / "m.safetensors").zeros == 4


def test_pages_and_other_formats_work_too(path, tmp_path):
    assert lpss("report", path, "--html", tmp_path / "a.html")[0] == 0
    torch.save(STATE, tmp_path / "m.pt")
    assert lpss("report", tmp_path / "m.pt", path)[0] == 0


def test_a_damaged_export_is_refused_when_streamed(tmp_path):
    artifact.save(tmp_path / "a.pt", STATE, {"arch": "mlp:6-4-3"})
    assert lpss("export", tmp_path / "a.pt", "--format", "safetensors")[0] == 0
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    code, _, err = lpss("report", tmp_path / "a.safetensors")
    assert (code, two_lines(err)) == (2, True)
    assert "it is not what was written" in err


@pytest.mark.parametrize("change", ["shorter", "longer", "written", "replaced", "gone"])
def test_a_file_that_changes_between_two_tensors_is_refused(path, change):
    streamed = TensorReader(path)
    assert streamed["fc1.weight"].tolist() == STATE["fc1.weight"].tolist()
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    elif change == "replaced":
        path.with_name("new").write_bytes(data)
        os.utime(path.with_name("new"), ns=(1, path.stat().st_mtime_ns))
        path.with_name("new").replace(path)
    else:
        path.write_bytes({"shorter": data[:-4], "longer": data + b"x", "written": data}[change])
        os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"changed while it was being read|there is no file"):
        streamed["fc2.weight"]


def test_a_tensor_larger_than_memory_is_an_input_error(path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("lpss_cli.checkpoints.safetensors_file.np.empty", full)
    with pytest.raises(InputError, match="cannot be read: it does not fit into memory"):
        TensorReader(path)["fc1.weight"]


def test_a_dtype_that_the_library_does_not_read_is_not_called_damage(path, monkeypatch):
    def unknown(_):
        raise KeyError("F8_E8M0")

    monkeypatch.setattr("safetensors.torch.load", unknown)
    with pytest.raises(InputError, match="does not read: 'F8_E8M0'"):
        loading.read(path)


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.5, 3e38, -3e38, 1e-45, 0.5]), max_size=40),
    columns=st.integers(1, 5),
    block=st.integers(1, 50),
)
def test_blocks_change_nothing(values, columns, block):
    tensor = torch.tensor(values[: len(values) // columns * columns]).view(-1, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpss_cli.utils.arrays._BLOCK", block)
        found = measure("w", tensor)
    whole = measure("w", tensor)
    assert replace(found, hoyer=None, survivors=None) == replace(whole, hoyer=None, survivors=None)
    assert found.hoyer == pytest.approx(whole.hoyer)
    # float64 takes another path.
    longer = measure("w", tensor.double())
    assert replace(longer, hoyer=None, survivors=None) == replace(whole, hoyer=None, survivors=None)
    assert longer.hoyer == pytest.approx(whole.hoyer)
    assert bool(longer.survivors) == bool(whole.survivors)
    if longer.survivors and whole.survivors:
        assert longer.survivors.counts == whole.survivors.counts
    nonzero = tensor[tensor != 0]
    assert found.zeros == tensor.numel() - len(nonzero)
    if not len(nonzero):
        assert found.survivors is None
        return
    assert found.survivors is not None
    assert whole.survivors is not None
    assert found.survivors.counts == whole.survivors.counts
    assert sum(found.survivors.counts) == len(nonzero)
    assert min(found.survivors.counts) >= 0
    assert (found.survivors.low, found.survivors.high) == (nonzero.min(), nonzero.max())
    for number, part in zip(
        found.survivors.centroids, (nonzero[nonzero > 0], nonzero[nonzero < 0]), strict=True
    ):
        assert number == (pytest.approx(float(part.double().mean())) if len(part) else None)


ALONE = """
import contextlib, io, sys
from pathlib import Path
from lpss_cli.cli import app
seen = []
for line in ("small.safetensors", "small.safetensors --html r.html", "m.safetensors --json"):
    sys.argv = ["lpss", "report", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        app.main()
    seen.append(text.getvalue())
print(seen[-1])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print("fc1.weight" in seen[0], "torch" in sys.modules, status["VmHWM"].split()[0], file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in /proc")
def test_a_report_needs_no_pytorch_and_the_memory_of_its_largest_tensor(path, tmp_path):
    """A file of 80 MB in tensors of 20 MB."""
    import numpy as np

    path.rename(tmp_path / "small.safetensors")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import oneshot
    finally:
        sys.path.pop(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oneshot, "_SIDE", 2236)
        oneshot.make(tmp_path / "m.safetensors", 4)
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["prunable"] == 4 * 2236 * 2236
    assert np.isclose(found["hoyer"], 0.2067, atol=2e-3)  # Hoyer of a long normal row: 1 - √(2/π)
    assert "<svg" in (tmp_path / "r.html").read_text()
    *facts, peak = done.stderr.split()[-3:]
    assert facts == ["True", "False"]
    assert int(peak) < 110_000  # of which Python, NumPy and the printer take 60 MB
