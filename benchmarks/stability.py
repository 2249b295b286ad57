"""Does the default ever diverge? 20 seeds × 7 p × 3 sparsities on digits, against dense.

    python benchmarks/stability.py

Every run trains the default network from scratch with `lpss` and its defaults, p aside, and is
compared with the dense run of its seed on the test split; nothing is chosen here. A run under 90 %
of the dense accuracy counts as failed. Writes benchmarks/results/stability.json and .md; a killed
run goes on where it was.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from tables import FOLDER, Results, spread
from tables import table as markdown
from training import trained

from lpss_cli.errors import RunError

PS = (0.5, 0.8, 1.07, 1.15, 1.3, 1.5, 2.0)
SPARSITIES = (0.5, 0.9, 0.98)
SEEDS = range(20)


def accuracy(p: float | None, sparsity: float, seed: int) -> float:
    """Test accuracy of one run; 0 when its loss became NaN."""
    options = {} if p is None else {"p": (str(p),)}
    method = "dense" if p is None else "lpss"
    try:
        outcome = trained(method=method, options=options, sparsity=sparsity, seed=seed)
    except RunError:
        return 0.0
    return outcome.after["accuracy"]


def one_seed(seed: int) -> dict[str, float]:
    """All runs of one seed, by name."""
    runs = {"dense": accuracy(None, 0.0, seed)}
    for p in PS:
        for sparsity in SPARSITIES:
            runs[f"{p} at {sparsity}"] = accuracy(p, sparsity, seed)
    return runs


def table(done: dict[str, dict[str, float]]) -> str:
    """Lay the finished runs out as Markdown, and count those that failed."""
    failed, rows = 0, []
    for p in PS:
        cells = []
        for sparsity in SPARSITIES:
            found = [(runs[f"{p} at {sparsity}"], runs["dense"]) for runs in done.values()]
            bad = sum(sparse < 0.9 * dense for sparse, dense in found)
            failed += bad
            text = spread([100 * sparse for sparse, _ in found])
            cells.append(text + (f" ({bad} failed)" if bad else ""))
        rows.append([f"{p:g}", *cells])
    return (
        f"{markdown(['p', *(f'{s:.0%} zeros' for s in SPARSITIES)], rows)}\n\n"
        f"Dense: {spread([100 * runs['dense'] for runs in done.values()])}. "
        f"{failed} of {len(done) * len(PS) * len(SPARSITIES)} runs failed."
    )


def main() -> None:
    results = Results(FOLDER / "stability.json", "`python benchmarks/stability.py`", table)
    missing = [seed for seed in SEEDS if str(seed) not in results.read()]
    with ProcessPoolExecutor(2) as pool:
        for seed, runs in zip(missing, pool.map(one_seed, missing), strict=True):
            results.put(str(seed), runs)
            print(seed, runs, flush=True)
    print(table(results.read()))


if __name__ == "__main__":
    main()
