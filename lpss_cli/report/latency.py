"""Time of a batch through one network."""

from __future__ import annotations

from dataclasses import dataclass


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
