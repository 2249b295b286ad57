"""Distillation from the dense network: the same sparse training with and without it.

    python benchmarks/distill.py --data-dir DIR [--only TEXT]

For every seed a dense network is trained, and sparsified three times from the same weights: by the
targets alone (W = 0), and with the dense network's class scores as half and as nine tenths of the
loss, at the default temperature. All else is the default of ``lpss train`` and ``lpss sparsify``.
Differences are paired: of the same dense network and seed. Writes benchmarks/results/distill.json
and .md and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tables import FOLDER, Results, spread
from tables import table as markdown

from lpss_cli.jobs import sparse_training, training_job
from lpss_cli.jobs.config import Request

WEIGHTS = (0.0, 0.5, 0.9)
#: (row, network and data, sparsity, seeds)
CASES: list[tuple[str, dict[str, Any], float, int]] = [
    ("digits, mlp:64-300-100-10, 95%", {"data": "digits"}, 0.95, 5),
    ("MNIST, LeNet-300, 98%", {"data": "mnist", "arch": "lenet300"}, 0.98, 3),
]


def measure(base: dict[str, Any], sparsity: float, root: str, seed: int) -> dict[str, Any]:
    """Train and sparsify with one seed; return test accuracies by W."""
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder) / "dense.pt", Path(folder) / "sparse.pt"
        overrides = {"data_dir": root} if base["data"] != "digits" else {}
        shared = {"data_overrides": overrides, "seed": seed}
        found = {"dense": training_job.train(Request(dense, **base, **shared)).after["accuracy"]}
        for weight in WEIGHTS:
            request = Request(sparse, sparsity=sparsity, distill=weight, force=True, **shared)
            outcome = sparse_training.sparsify_checkpoint(dense, request)
            found[f"{weight:g}"] = outcome.after["accuracy"]
        return found | {"zeros": outcome.report.zeros, "prunable": outcome.report.weights}


def table(done: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the finished rows out as Markdown."""
    head = ["run", "zeros", "seeds", "dense", "W = 0", "W = 0.5", "W = 0.9",
            "0.5 against 0, paired", "0.9 against 0, paired"]  # fmt: skip
    rows = []
    for name, runs in done.items():
        zeros = f"{runs[0]['zeros']:,} of {runs[0]['prunable']:,}"
        cells = [spread([100 * run[key] for run in runs]) for key in ("dense", "0", "0.5", "0.9")]
        cells += [
            spread([100 * (run[key] - run["0"]) for run in runs], "+") for key in ("0.5", "0.9")
        ]
        rows.append([name, zeros, str(len(runs)), *cells])
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    given = parser.parse_args()
    head = (
        "`python benchmarks/distill.py --data-dir DIR`: test accuracy in %, mean and standard "
        "deviation"
    )
    results = Results(FOLDER / "distill.json", head, table)
    for name, base, sparsity, seeds in CASES:
        if given.only in name:
            results.fill(name, range(seeds), partial(measure, base, sparsity, given.data_dir))


if __name__ == "__main__":
    main()
