"""How long it takes to choose which weights are kept, against sorting all of them.

    python benchmarks/ranking.py [--rounds 5]

Normal weights in the shapes of real networks, 10 % kept, by the default ranking (LAMP) and by plain
magnitude. Times are the thread's own (CPU), one thread; the median of the rounds counts.
Writes benchmarks/results/ranking.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from tables import FOLDER, table, write
from torch import Tensor

from lpss_cli.models import build
from lpss_cli.sparsity.masks import select_masks
from lpss_cli.sparsity.prunable import prunable_weights

NETWORKS = {
    "lenet300": ((1, 28, 28), 10),
    "torchvision:resnet18": ((3, 224, 224), 1000),
    "torchvision:resnet50": ((3, 224, 224), 1000),
}
KEPT = 0.1


def scores_of(network: str) -> dict[str, Tensor]:
    """Log-magnitudes of normal weights of Kaiming's scale."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build(network, *NETWORKS[network])
    shapes = {name: weight.tensor.shape for name, weight in prunable_weights(model).items()}
    return {
        name: torch.randn(shape).mul_(math.sqrt(2 / math.prod(shape[1:]))).abs_().log_()
        for name, shape in shapes.items()
    }


def sorted_all(scores: dict[str, Tensor], k: int) -> None:
    """Sort every layer: the least that a choice by LAMP scores takes without bins."""
    for s in scores.values():
        s.flatten().double().sort(descending=True, stable=True)


def median_ms(rounds: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return 1000 * statistics.median(seconds)


def measured(network: str, rounds: int) -> dict:
    scores = scores_of(network)
    total = sum(s.numel() for s in scores.values())
    k = round(KEPT * total)
    return {
        "network": network,
        "weights": total,
        "lamp_ms": median_ms(rounds, lambda: select_masks(scores, k, "lamp")),
        "magnitude_ms": median_ms(rounds, lambda: select_masks(scores, k, "magnitude")),
        "sort_ms": median_ms(rounds, lambda: sorted_all(scores, k)),
    }


def summary(rows: list[dict]) -> str:
    head = ["network", "weights", "lamp, ms", "magnitude, ms", "sorting, ms"]
    keys = ("lamp_ms", "magnitude_ms", "sort_ms")
    return table(
        head,
        [
            [row["network"], f"{row['weights']:,}", *(f"{row[key]:,.1f}" for key in keys)]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        rows.append(measured(network, rounds))
        print(json.dumps(rows[-1]), flush=True)
    write(FOLDER / "ranking.json", rows, "`python benchmarks/ranking.py`", summary(rows))


if __name__ == "__main__":
    main()
