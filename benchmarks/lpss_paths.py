"""Which way to the target: the cubic path, the paper's controller, or LpSS as published.

    python benchmarks/lpss_paths.py --data-dir DIR

LeNet-300-100 on MNIST from scratch, 12 epochs, batch 256, all else by default, measured on a tenth
of the training data held out (a default is chosen here, so the test split stays untouched). Writes
benchmarks/results/lpss_paths.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from lpss_cli import jobs
from lpss_cli.errors import RunError
from lpss_cli.request import Request

PUBLISHED_TIMES = {"begin": 0.2, "end": 0.8, "frequency": 40}
WAYS = {
    "lpss, cubic path (default)": ("lpss", {}),
    "lpss, controller": ("lpss", {"path": "controller"}),
    "lpss, controller at the published times": (
        "lpss",
        {"path": "controller", **PUBLISHED_TIMES},
    ),
    "lpss-published": ("lpss-published", {}),
}
SEEDS = (0, 1, 2)
# Twice chance: a run below it has collapsed, and is counted instead of averaged.
COLLAPSED = 0.2
SPARSITIES = (0.9, 0.98)


def accuracy(method: str, options: dict, sparsity: float, seed: int, root: str) -> float | None:
    """Held-out accuracy of one run; None when it diverged to NaN."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            Path(folder) / "m.pt",
            data="mnist",
            data_overrides={"data_dir": root},
            arch="lenet300",
            method=method,
            options=options,
            sparsity=sparsity,
            epochs=12,
            seed=seed,
            holdout=0.1,
        )
        try:
            return jobs.train(request).after["accuracy"]
        except RunError:
            return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    root = parser.parse_args().data_dir
    out = Path("benchmarks/results/lpss_paths.json")
    done = json.loads(out.read_text()) if out.exists() else {}
    lines = ["| way | " + " | ".join(f"{s:.0%} zeros" for s in SPARSITIES) + " |", "|---|---|---|"]
    for name, (method, options) in WAYS.items():
        cells = []
        for sparsity in SPARSITIES:
            runs = done.setdefault(f"{name} at {sparsity}", [])
            for seed in SEEDS[len(runs) :]:
                runs.append(accuracy(method, options, sparsity, seed, root))
                out.write_text(json.dumps(done, indent=1) + "\n")
                print(name, sparsity, seed, runs[-1], flush=True)
            values = [100 * a for a in runs if a is not None and a > COLLAPSED]
            spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
            lost = len(runs) - len(values)
            cells.append(spread + (f" ({lost} of {len(runs)} seeds collapsed)" if lost else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    out.with_suffix(".md").write_text(
        f"`python benchmarks/lpss_paths.py --data-dir DIR`\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    main()
