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
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from lpss_cli import jobs
from lpss_cli.files import replacing
from lpss_cli.request import Request

RESULTS = Path("benchmarks/results")
WEIGHTS = (0.0, 0.5, 0.9)
#: (row, network and data, sparsity, seeds)
CASES: list[tuple[str, dict[str, Any], float, int]] = [
    ("digits, mlp:64-300-100-10, 95%", {"data": "digits"}, 0.95, 5),
    ("MNIST, LeNet-300, 98%", {"data": "mnist", "arch": "lenet300"}, 0.98, 3),
]


def measure(base: dict[str, Any], sparsity: float, seed: int, root: str) -> dict[str, Any]:
    """Train and sparsify with one seed; return test accuracies by W."""
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder) / "dense.pt", Path(folder) / "sparse.pt"
        overrides = {"data_dir": root} if base["data"] != "digits" else {}
        shared = {"data_overrides": overrides, "seed": seed}
        found = {"dense": jobs.train(Request(dense, **base, **shared)).after["accuracy"]}
        for weight in WEIGHTS:
            request = Request(sparse, sparsity=sparsity, distill=weight, force=True, **shared)
            outcome = jobs.sparsify(dense, request)
            found[f"{weight:g}"] = outcome.after["accuracy"]
        return found | {"zeros": outcome.report.zeros, "prunable": outcome.report.weights}


def table(done: dict[str, list[dict[str, Any]]]) -> str:
    """Lay the finished rows out as Markdown."""
    lines = [
        "| run | zeros | seeds | dense | W = 0 | W = 0.5 | W = 0.9 | 0.5 against 0, paired "
        "| 0.9 against 0, paired |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in done.items():
        zeros = f"{runs[0]['zeros']:,} of {runs[0]['prunable']:,}"
        cells = [_spread([run[key] for run in runs]) for key in ("dense", "0", "0.5", "0.9")]
        cells += [_spread([run[key] - run["0"] for run in runs], "+") for key in ("0.5", "0.9")]
        lines.append(f"| {name} | {zeros} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], sign: str = "") -> str:
    hundred = [100 * value for value in values]
    spread = f" ± {statistics.stdev(hundred):.2f}" if len(hundred) > 1 else ""
    return f"{statistics.mean(hundred):{sign}.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    given = parser.parse_args()
    out = RESULTS / "distill.json"
    for name, base, sparsity, seeds in CASES:
        for seed in range(seeds) if given.only in name else ():
            done = json.loads(out.read_text()) if out.exists() else {}
            runs = done.setdefault(name, [])
            if len(runs) > seed:
                continue
            runs.append(measure(base, sparsity, seed, given.data_dir))
            print(name, seed, runs[-1], flush=True)
            text = (
                "`python benchmarks/distill.py --data-dir DIR`: test accuracy in %, mean and "
                f"standard deviation\n\n{table(done)}\n"
            )
            for path, content in (
                (out, json.dumps(done, indent=1) + "\n"),
                (out.with_suffix(".md"), text),
            ):
                with replacing(path) as temporary:
                    temporary.write_text(content)


if __name__ == "__main__":
    main()
