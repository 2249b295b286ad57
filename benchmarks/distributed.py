"""Several processes against one: the same sparse training of the same dense network.

    python benchmarks/distributed.py --data-dir DIR [--processes 2] [--seeds 5]

For every seed a dense LeNet-300-100 is trained on MNIST, and sparsified to 90 % from that file by
one process and by several, which ``torchrun`` starts and gloo connects. The batch is that of all
processes together, so both take the same steps. Every run is an `lpss` command. Differences are
paired: of the same dense network and seed. Writes benchmarks/results/distributed.json and .md and
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tables import FOLDER, Results, spread
from tables import table as markdown

BUDGET = ("--epochs", "4", "--batch-size", "256", "--device", "cpu")
ALONE = ("-m", "lpss_cli")


def launched(processes: int) -> tuple[str, ...]:
    """Return the words after ``python`` that start so many processes of lpss on this machine."""
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return (*run, *ALONE)


def lpss(start: tuple[str, ...], *arguments: str) -> dict[str, Any]:
    """Return the JSON document of one command."""
    command = [sys.executable, *start, *arguments, *BUDGET, "--json", "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def measure(root: str, processes: int, seed: int) -> dict[str, Any]:
    """Train and sparsify with one seed; return test accuracies and counts."""
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = str(Path(folder) / "dense.pt"), str(Path(folder) / "sparse.pt")
        shared = ("--data-dir", root, "--seed", str(seed))
        lpss(ALONE, "train", "--data", "mnist", "--arch", "lenet300", "--out", dense, *shared)
        found: dict[str, Any] = {}
        for name, start in (("one", ALONE), ("several", launched(processes))):
            target = ("--sparsity", "0.9", "--out", sparse, "--force")
            document = lpss(start, "sparsify", dense, *target, *shared)
            found["dense"] = document["before"]["accuracy"]
            found[name] = document["after"]["accuracy"]
            found[f"zeros_{name}"] = document["report"]["zeros"]
        return found | {"prunable": document["report"]["prunable"]}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the finished runs out as Markdown, a line a seed and one of all."""
    head = ["processes", "seed", "dense", "one process", "several", "difference, points", "zeros"]
    lines = []
    for processes, runs in rows.items():
        for seed, run in enumerate(runs):
            lines.append([processes, str(seed), *_cells([run]), _zeros(run)])
        if len(runs) > 1:
            lines.append([processes, "all", *_cells(runs), ""])
    return markdown(head, lines)


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    change = [100 * (run["several"] - run["one"]) for run in runs]
    accuracies = [spread([100 * run[key] for run in runs]) for key in ("dense", "one", "several")]
    return [*accuracies, spread(change, "+")]


def _zeros(run: dict[str, Any]) -> str:
    """Write the zeros of both runs, once where they are the same."""
    counts = dict.fromkeys(f"{run[key]:,}" for key in ("zeros_one", "zeros_several"))
    return f"{' and '.join(counts)} of {run['prunable']:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    command = "`python benchmarks/distributed.py --data-dir DIR`"
    results = Results(FOLDER / "distributed.json", f"{command}: test accuracy in %", table)
    run = partial(measure, given.data_dir, given.processes)
    results.fill(str(given.processes), range(given.seeds), run)


if __name__ == "__main__":
    main()
