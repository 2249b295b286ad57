"""One cut of a file larger than memory should be: time and peak memory of the command.

    python benchmarks/oneshot.py [--gigabytes 4] [--folder DIR]

Makes a safetensors file of normal weights (float32, square matrices of 64 MB), runs
`lpss sparsify FILE --epochs 0` on it in a process of its own, and a plain copy beside it.
Writes benchmarks/results/oneshot.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tables import FOLDER, table, write

_SIDE = 4096  # 64 MB of float32


def make(path: Path, count: int) -> None:
    """Write so many matrices, one at a time."""
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
        for _ in range(count):
            file.write(generator.standard_normal(_SIDE * _SIDE, np.float32).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path, out = Path(folder) / "big.safetensors", Path(folder) / "out.safetensors"
        make(path, max(1, round(given.gigabytes * 1e9 / (_SIDE * _SIDE * 4))))
        size = path.stat().st_size
        began = time.perf_counter()
        shutil.copyfile(path, Path(folder) / "copy")
        copied = time.perf_counter() - began
        (Path(folder) / "copy").unlink()
        command = [sys.executable, "-m", "lpss_cli", "sparsify", str(path), "--epochs", "0",
                   "--out", str(out), "--json", "--quiet"]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        found = json.loads(done.stdout)
    row = {
        "bytes": size, "weights": found["weights"], "zeros": found["zeros"], "seconds": seconds,
        "copy_seconds": copied, "peak_bytes": peak,
    }  # fmt: skip
    head = ["file", "zeros", "time", "rate", "a plain copy", "peak memory"]
    cells = [
        f"{size / 1e9:.2f} GB", f"{found['zeros']:,} of {found['weights']:,}", f"{seconds:.1f} s",
        f"{size / 1e6 / seconds:.0f} MB/s", f"{copied:.1f} s", f"{peak / 1e6:.0f} MB",
    ]  # fmt: skip
    text = table(head, [cells])
    write(FOLDER / "oneshot.json", row, "`python benchmarks/oneshot.py`", text)
    print(text)


if __name__ == "__main__":
    main()
