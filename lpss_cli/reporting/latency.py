"""The time that a batch takes through a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """The time that one batch takes through one network on this machine.

    Attributes:
        network: name of the network.
        batch: number of examples.
        median, low, high: median and quartiles over the runs, in milliseconds.
        runs: number of runs that were measured.
        runtime: name and version of the runtime.
        threads: how many threads the runtime may use.
    """

    network: str
    batch: int
    median: float
    low: float
    high: float
    runs: int
    runtime: str
    threads: int
