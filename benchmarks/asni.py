"""ASNI-I and ASNI-II: gradual cuts, then the same mask from two numbers per layer.

    python benchmarks/asni.py --data-dir DIR [--only TEXT]

For every network: a dense run, and at every sparsity ASNI-I, the bare start of ASNI-II that is
made from it (the network of two values per layer, untrained), that start retrained with the mask
fixed, and a random mask of the same layer counts trained in the same way. All runs have the same
number of epochs and the defaults of their method. Writes benchmarks/results/asni.json and .md and
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tables import FOLDER, Results, spread
from tables import table as markdown
from tune import LENET300

from lpss_cli.jobs import training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.ticket import ticket

VGG = {"arch": "conv2", "data": "fashion-mnist", "batch_size": 256, "precision": "bf16"}
#: (row, network and budget, sparsities, seeds)
CASES: list[tuple[str, dict[str, Any], tuple[float, ...], int]] = [
    ("LeNet-300 MNIST, 20 epochs", {**LENET300, "epochs": 20}, (0.8, 0.9, 0.95), 3),
    ("Conv-2 Fashion-MNIST, 8 epochs", {**VGG, "epochs": 8}, (0.8, 0.9), 2),
]


def measure(base: dict[str, Any], sparsity: float, root: str, seed: int) -> dict[str, Any]:
    """Train one row's networks on all training data and measure them on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        sparse, again = Path(folder) / "sparse.pt", Path(folder) / "again.pt"
        shared = {**base, "data_overrides": {"data_dir": root}, "seed": seed}
        if sparsity == 0:
            return {"dense": training_job.train(Request(sparse, **shared)).after["accuracy"]}
        first = training_job.train(Request(sparse, method="asni", sparsity=sparsity, **shared))
        retraining = {k: v for k, v in shared.items() if k not in ("arch", "data")}
        second = ticket(sparse, Request(again, **retraining), "centroids")
        return {
            "ASNI-I": first.after["accuracy"],
            "bare": second.outcome.before["accuracy"],
            "ASNI-II": second.outcome.after["accuracy"],
            "random": second.control["accuracy"],
            "bytes": second.initial_bytes,
            "zeros": second.outcome.report.zeros,
            "prunable": second.outcome.report.weights,
        }


def table(done: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the finished rows out as Markdown."""
    head = ["run", "zeros", "seeds", "dense", "ASNI-I", "two numbers per layer, untrained",
            "ASNI-II", "random mask", "start on disk"]  # fmt: skip
    rows = []
    for name, runs in done.items():
        first = runs[0]
        zeros = f"{first['zeros']:,} of {first['prunable']:,}" if "zeros" in first else "-"
        size = f"{first['bytes']:,} B" if "bytes" in first else "-"
        columns = ("dense", "ASNI-I", "bare", "ASNI-II", "random")
        cells = [spread([100 * run[key] for run in runs if key in run]) for key in columns]
        rows.append([name, zeros, str(len(runs)), *cells, size])
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    given = parser.parse_args()
    results = Results(FOLDER / "asni.json", "`python benchmarks/asni.py --data-dir DIR`", table)
    for name, base, sparsities, seeds in CASES:
        for sparsity in (0.0, *sparsities) if given.only in name else ():
            row = f"{name}, {sparsity:.0%}" if sparsity else f"{name}, dense"
            results.fill(row, range(seeds), partial(measure, base, sparsity, given.data_dir))


if __name__ == "__main__":
    main()
