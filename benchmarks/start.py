"""How long the command line takes to start, against what it cannot do without.

    python benchmarks/start.py [--rounds 7]

Each round starts, one after the other, in processes of their own: Python alone, `lpss --help`,
`import torch`, and `lpss report` of a small checkpoint, and of a safetensors file as small, of a
network that lpss does not know: to say which network a file is of takes PyTorch. CPU times of whole
processes (user and system), so that other programs of a shared machine disturb them through caches
and memory alone; medians, and the median of the rounds' own ratios. The first round is not counted:
it fills the cache of the file system. Writes benchmarks/results/start.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUT = Path("benchmarks/results/start.json")
SAMPLE = Path("sample_models/digits_mlp.sparse.pt")
WIDTHS = (64, 300, 100, 10)  # the sample's
PYTHON, HELP, TORCH, REPORT = "python -c pass", "lpss --help", "import torch", "lpss report"
STREAMED = "lpss report FILE.safetensors"
#: What a command is compared with.
AGAINST = {HELP: PYTHON, REPORT: TORCH, STREAMED: TORCH}


def commands(folder: Path) -> dict[str, list[str]]:
    """What Python is started with, by the command's name."""
    path, generator = folder / "FILE.safetensors", np.random.default_rng(0)
    pairs = zip(WIDTHS[1:], WIDTHS, strict=False)
    shapes = {f"layers.{i}.weight": shape for i, shape in enumerate(pairs, 1)}
    shapes |= {f"layers.{i}.bias": (width,) for i, width in enumerate(WIDTHS[1:], 1)}
    save_file({n: generator.standard_normal(s, np.float32) for n, s in shapes.items()}, path)
    return {
        PYTHON: ["-c", "pass"],
        HELP: ["-m", "lpss_cli", "--help"],
        TORCH: ["-c", "import torch"],
        REPORT: ["-m", "lpss_cli", "report", str(SAMPLE)],
        STREAMED: ["-m", "lpss_cli", "report", str(path)],
    }


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of one process of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    quiet = subprocess.DEVNULL
    subprocess.run([sys.executable, *arguments], stdout=quiet, stderr=quiet, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(rounds: int) -> list[dict]:
    """Median time of every command, and of its ratio to what it is compared with."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = commands(Path(folder))
        for turn in range(-1, rounds):
            for name, arguments in started.items():
                seconds = cpu_seconds(arguments)
                if turn >= 0:
                    times.setdefault(name, []).append(seconds)
    rows = []
    for name, own in times.items():
        row: dict = {"command": name, "rounds": rounds, "median_ms": 1e3 * statistics.median(own)}
        if name in AGAINST:
            ratios = [a / b for a, b in zip(own, times[AGAINST[name]], strict=True)]
            row |= {"against": AGAINST[name], "ratio": statistics.median(ratios)}
            row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
        rows.append(row)
    return rows


def summary(rows: list[dict]) -> str:
    lines = ["| command | CPU ms | against | ratio | lowest to highest |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row['command']}`", f"{row['median_ms']:.0f}"]
        if "against" in row:
            spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
            cells += [f"`{row['against']}`", f"{row['ratio']:.2f}", spread]
        lines.append(f"| {' | '.join(cells + ['-'] * (5 - len(cells)))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rows = measured(parser.parse_args().rounds)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
    text = f"`python benchmarks/start.py`\n\n{summary(rows)}\n"
    OUT.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
