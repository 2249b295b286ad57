"""How long the command line takes to start, against what it cannot do without.

    python benchmarks/start.py [--rounds 7]

Each round starts, one after the other, in processes of their own: Python alone, `lpss --help`,
`import torch`, and `lpss report` of a small checkpoint. CPU times of whole processes (user and
system), so that other programs of a shared machine disturb them through caches and memory alone;
medians, and the median of the rounds' own ratios. The first round is not counted: it fills the
cache of the file system. Writes benchmarks/results/start.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

OUT = Path("benchmarks/results/start.json")
SAMPLE = Path("sample_models/digits_mlp.sparse.pt")
PYTHON, HELP, TORCH, REPORT = "python -c pass", "lpss --help", "import torch", "lpss report"
COMMANDS = {
    PYTHON: ["-c", "pass"],
    HELP: ["-m", "lpss_cli", "--help"],
    TORCH: ["-c", "import torch"],
    REPORT: ["-m", "lpss_cli", "report", str(SAMPLE)],
}
#: What a command is compared with.
AGAINST = {HELP: PYTHON, REPORT: TORCH}


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of one process of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(rounds: int) -> list[dict]:
    """Median time of every command, and of its ratio to what it is compared with."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(-1, rounds):
        for name, arguments in COMMANDS.items():
            seconds = cpu_seconds(arguments)
            if turn >= 0:
                times[name].append(seconds)
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
