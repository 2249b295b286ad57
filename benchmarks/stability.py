"""Does the default ever diverge? 20 seeds × 7 p × 3 sparsities on digits, against dense.

    python benchmarks/stability.py

Every run trains the default network from scratch with `lpss` and its defaults, p aside, and is
compared with the dense run of its seed on the test split; nothing is chosen here. A run under 90 %
of the dense accuracy counts as failed. Writes benchmarks/results/stability.json and .md; a killed
run goes on where it was.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lpss_cli import jobs
from lpss_cli.errors import RunError
from lpss_cli.request import Request

PS = (0.5, 0.8, 1.07, 1.15, 1.3, 1.5, 2.0)
SPARSITIES = (0.5, 0.9, 0.98)
SEEDS = range(20)
OUT = Path("benchmarks/results/stability.json")


def accuracy(p: float | None, sparsity: float, seed: int) -> float:
    """Test accuracy of one run; 0 when its loss became NaN."""
    with tempfile.TemporaryDirectory() as folder:
        options = {} if p is None else {"p": (str(p),)}
        method = "dense" if p is None else "lpss"
        request = Request(
            Path(folder) / "m.pt", method=method, options=options, sparsity=sparsity, seed=seed
        )
        try:
            return jobs.train(request).after["accuracy"]
        except RunError:
            return 0.0


def one_seed(seed: int) -> dict[str, float]:
    """All runs of one seed, by name."""
    runs = {"dense": accuracy(None, 0.0, seed)}
    for p in PS:
        for sparsity in SPARSITIES:
            runs[f"{p} at {sparsity}"] = accuracy(p, sparsity, seed)
    return runs


def main() -> None:
    done = json.loads(OUT.read_text()) if OUT.exists() else {}
    missing = [seed for seed in SEEDS if str(seed) not in done]
    with ProcessPoolExecutor(2) as pool:
        for seed, runs in zip(missing, pool.map(one_seed, missing), strict=True):
            done[str(seed)] = runs
            OUT.write_text(json.dumps(done, indent=1) + "\n")
            print(seed, runs, flush=True)
    failed = 0
    lines = ["| p | " + " | ".join(f"{s:.0%} zeros" for s in SPARSITIES) + " |", "|---" * 4 + "|"]
    for p in PS:
        cells = []
        for sparsity in SPARSITIES:
            values = [runs[f"{p} at {sparsity}"] for runs in done.values()]
            bad = sum(runs[f"{p} at {sparsity}"] < 0.9 * runs["dense"] for runs in done.values())
            failed += bad
            spread = f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
            cells.append(spread + (f" ({bad} failed)" if bad else ""))
        lines.append(f"| {p:g} | {' | '.join(cells)} |")
    dense = [100 * runs["dense"] for runs in done.values()]
    text = "\n".join(lines) + (
        f"\n\nDense: {statistics.mean(dense):.2f} ± {statistics.stdev(dense):.2f}. "
        f"{failed} of {len(done) * len(PS) * len(SPARSITIES)} runs failed."
    )
    OUT.with_suffix(".md").write_text(f"`python benchmarks/stability.py`\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
