"""A file larger than memory should be, cut once and reported: time and peak memory of the commands.

    python benchmarks/oneshot.py [--gigabytes 4] [--folder DIR]

Makes a safetensors file of normal weights (float32, square matrices of 64 MB), runs
`lpss sparsify FILE --epochs 0` and `lpss report FILE` on it in processes of their own, and beside
them a plain copy and an `import torch`, whose time and memory are a part of the report's. Times are
those of the wall and of the CPU (user and system): where other programs share the machine, the
latter alone says something. Writes benchmarks/results/oneshot.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tables import FOLDER, write

_SIDE = 4096  # 64 MB of float32
_ROWS = 256  # of a matrix, written together


def make(path: Path, count: int) -> None:
    """Write so many matrices, 4 MB at a time: memory of this process would count as theirs."""
    size = _SIDE * _SIDE * 4
    entries = {
        f"layers.{i}.weight": {
            "dtype": "F32", "shape": [_SIDE, _SIDE], "data_offsets": [i * size, (i + 1) * size]
        }
        for i in range(count)
    }  # fmt: skip
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for begin in range(0, count * _SIDE, _ROWS):
            rows = min(_ROWS, count * _SIDE - begin)
            file.write(generator.standard_normal(rows * _SIDE, np.float32).tobytes())


def run(arguments: list[str]) -> tuple[dict, str]:
    """Run Python with these arguments: its times, its peak memory, and what it printed."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as text:
        process = subprocess.Popen([sys.executable, *arguments], stdout=text)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        text.seek(0)
        output = text.read()
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": used.ru_maxrss * 1024}, output


def copied(path: Path) -> dict:
    """Copy a file and remove the copy."""
    began, cpu = time.perf_counter(), time.process_time()
    shutil.copyfile(path, path.with_name("copy"))
    row = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    path.with_name("copy").unlink()
    return row


def measured(path: Path) -> dict:
    """Run everything there is to compare on one file."""
    out = path.with_name("out.safetensors")
    lpss = ["-m", "lpss_cli"]
    rows = {"a plain copy": copied(path)}
    rows["import torch"], _ = run(["-c", "import torch"])
    cut = [*lpss, "sparsify", str(path), "--epochs", "0", "--out", str(out), "--json", "--quiet"]
    rows["lpss sparsify --epochs 0"], text = run(cut)
    out.unlink()
    found = json.loads(text)
    rows["lpss report"], text = run([*lpss, "report", str(path), "--json", "--quiet"])
    if json.loads(text)["prunable"] != found["weights"]:
        raise SystemExit("the two commands do not agree on what there is")
    size = path.stat().st_size
    return {"bytes": size, "weights": found["weights"], "zeros": found["zeros"], "rows": rows}


def summary(found: dict) -> str:
    cut = f"{found['zeros']:,} of {found['weights']:,} weights"
    lines = [
        f"{found['bytes'] / 1e9:.2f} GB, {cut} cut",
        "",
        "| command | s | MB/s | CPU s | MB a CPU s | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    size = found["bytes"] / 1e6
    for name, row in found["rows"].items():
        reads = "torch" not in name
        rates = [f"{size / row[key]:.0f}" if reads else "-" for key in ("seconds", "cpu_seconds")]
        peak = f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "-"
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {rates[0]} | {row['cpu_seconds']:.1f} "
            f"| {rates[1]} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "big.safetensors"
        make(path, max(1, round(given.gigabytes * 1e9 / (_SIDE * _SIDE * 4))))
        found = measured(path)
    text = summary(found)
    write(FOLDER / "oneshot.json", found, "`python benchmarks/oneshot.py`", text)
    print(text)


if __name__ == "__main__":
    main()
