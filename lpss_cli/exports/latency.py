"""How long onnxruntime takes for a batch: medians and quartiles, several networks in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lpss_cli.exports.onnxruntimes import open_session, runtime

BATCHES = (1, 64)
# Seconds for all networks at one batch size.
_BUDGET = 0.6
_FEWEST, _MOST = 5, 500


@dataclass(frozen=True)
class Latency:
    """Time of one batch through one network on this machine.

    Attributes:
        network: which one.
        batch: examples.
        median, low, high: median and quartiles over the runs, in milliseconds.
        runs: how many were measured.
        runtime: its name and version.
        threads: it may use.
    """

    network: str
    batch: int
    median: float
    low: float
    high: float
    runs: int
    runtime: str
    threads: int


def measure(
    networks: Mapping[str, bytes], inputs: Tensor, *, threads: int = 1, budget: float = _BUDGET
) -> tuple[Latency, ...]:
    """Measure networks side by side, run by run in turn, so that a busy moment hits them all.

    Args:
        networks: name → ONNX file.
        inputs: (N ≥ 1, …) real inputs, repeated to fill a batch.
        threads: of the runtime.
        budget: seconds for all networks at one batch size, about; a batch size of which five runs
            would take longer is left out.

    Returns:
        Every network at every batch size in ``BATCHES``, in that order.
    """
    sessions = {name: open_session(content, threads) for name, content in networks.items()}
    found: list[Latency] = []
    for batch in BATCHES:
        single = sum(row.median for row in found if row.batch == 1) / 1e3
        if batch > 1 and single * batch * _FEWEST > 4 * budget:
            break  # a large batch costs less than its size times one, up to four times less
        rows = np.resize(inputs.numpy(), (batch, *inputs.shape[1:]))
        times: dict[str, list[float]] = {name: [] for name in sessions}
        start = time.perf_counter()
        for turn in range(_MOST + 1):
            for name, session in sessions.items():
                before = time.perf_counter()
                session.run(None, {"input": rows})
                times[name].append(1e3 * (time.perf_counter() - before))
            if turn >= _FEWEST and time.perf_counter() - start > budget:
                break
        found += [_latency(name, batch, values[1:], threads) for name, values in times.items()]
    return tuple(found)


def _latency(name: str, batch: int, values: list[float], threads: int) -> Latency:
    """Sum up the runs; the first, which fills caches, has been left out."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(name, batch, median, low, high, len(values), runtime(), threads)
