"""The main job, measured: train densely, sparsify to 90 % from that checkpoint, several seeds.

    python benchmarks/main_job.py --data-dir DIR [--only TEXT] [--out benchmarks/results/main_job]

Runs the `lpss` commands themselves, each sparse run from the dense checkpoint of its own seed
(paired), and writes OUT.json and OUT.md. Finished rows of OUT.json are kept, so a killed run
goes on where it was. Nothing here looks at the test split to choose anything: every option that
is not given is the default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from tables import FOLDER, Results, spread
from tables import table as markdown

DIGITS = ["--data", "digits"]
MNIST = ["--data", "mnist", "--arch", "lenet300", "--epochs", "12"]
BF16 = ["--precision", "bf16"]
LENET5 = ["--data", "mnist", "--arch", "lenet5", "--epochs", "12", *BF16]
# Learning rate and decay of the dense run as benchmarks/tune.py chose them.
WRN18 = [
    *("--data", "fashion-mnist", "--arch", "wrn18", "--augment", "fashion", "--epochs", "8"),
    *("--batch-size", "256", "--lr", "0.2", "--weight-decay", "0.0005", *BF16),
]
# (name, train options, sparsify options, seeds)
ROWS = [
    ("digits, p = 0.5", DIGITS, ["--p", "0.5"], 20),
    ("digits, the default", DIGITS, [], 20),
    ("digits, gmp", DIGITS, ["--method", "gmp"], 20),
    ("LeNet-300 MNIST, the default", MNIST, ["--epochs", "4"], 3),
    ("LeNet-300 MNIST, p = 0.5", MNIST, ["--p", "0.5", "--epochs", "4"], 3),
    ("LeNet-300 MNIST, gmp", MNIST, ["--method", "gmp", "--epochs", "4"], 3),
    ("LeNet-5 MNIST, the default", LENET5, ["--epochs", "4", *BF16], 3),
    ("LeNet-5 MNIST, gmp", LENET5, ["--method", "gmp", "--epochs", "4", *BF16], 3),
    ("WRN-18 Fashion-MNIST, the default", WRN18, ["--epochs", "4", *BF16], 2),
    ("WRN-18 Fashion-MNIST, --distill 0.9", WRN18,
     ["--distill", "0.9", "--epochs", "4", *BF16], 2),
    ("WRN-18 Fashion-MNIST, gmp", WRN18, ["--method", "gmp", "--epochs", "4", *BF16], 2),
    ("WRN-18 Fashion-MNIST, --eta 0.005 --end 0.5", WRN18,
     ["--eta", "0.005", "--end", "0.5", "--epochs", "4", *BF16], 2),
    ("WRN-18 Fashion-MNIST, --epochs 8", WRN18, ["--epochs", "8", *BF16], 2),
    ("WRN-18 Fashion-MNIST, gmp --epochs 8", WRN18,
     ["--method", "gmp", "--epochs", "8", *BF16], 2),
]  # fmt: skip


def lpss(*args: str) -> dict:
    command = [sys.executable, "-m", "lpss_cli", *args, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(train: list[str], sparsify: list[str], folder: Path, seed: int) -> dict:
    dense = folder / f"{'-'.join(train).replace('/', '_')}-{seed}.pt"
    if not dense.exists():
        lpss("train", *train, "--seed", str(seed), "--out", str(dense))
    arguments = ["--sparsity", "0.9", "--seed", str(seed), *sparsify]
    sparse = lpss("sparsify", str(dense), *arguments, "--out", str(folder / "s.pt"), "--force")
    report = sparse["report"]
    return {
        "dense": sparse["before"]["accuracy"],
        "sparse": sparse["after"]["accuracy"],
        "zeros": report["zeros"],
        "prunable": report["prunable"],
        "hoyer": report["hoyer"],
        "seconds": sparse["seconds"],
    }


def table(rows: dict[str, list[dict]]) -> str:
    head = ["run", "seeds", "dense", "sparse (90 % zeros)", "sparse - dense, points", "Hoyer"]
    lines = []
    for name, *_ in ROWS:
        if runs := rows.get(name):
            dense, sparse = ([100 * r[k] for r in runs] for k in ("dense", "sparse"))
            change = [s - d for s, d in zip(sparse, dense, strict=True)]
            hoyer = statistics.mean(r["hoyer"] for r in runs)
            cells = [spread(dense), spread(sparse), spread(change, "+"), f"{hoyer:.2f}"]
            lines.append([name, str(len(runs)), *cells])
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--out", type=Path, default=FOLDER / "main_job")
    arguments = parser.parse_args()
    command = "`python benchmarks/main_job.py --data-dir DIR`"
    results = Results(arguments.out.with_suffix(".json"), command, table)
    with tempfile.TemporaryDirectory() as folder:
        for name, train, sparsify, seeds in (row for row in ROWS if arguments.only in row[0]):
            # The data folder is this machine's own: it is passed on, not recorded.
            where = ["--data-dir", arguments.data_dir] if train != DIGITS else []
            pair = partial(measure, [*train, *where], [*sparsify, *where], Path(folder))
            results.fill(name, range(seeds), pair)
    print(table(results.read()))


if __name__ == "__main__":
    main()
