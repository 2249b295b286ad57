"""What an export returns: a written file and the proof that it holds the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lpss_cli.reporting.flops import Savings
from lpss_cli.reporting.latency import Latency


@dataclass(frozen=True)
class ExportedFile:
    """A written file and the proof that it holds the model.

    Attributes:
        path: the file.
        kind: one of ``options.FORMATS``.
        bytes: its size on disk.
        checked: what was compared, in words.
        largest_difference: largest difference of the outputs, relative to the largest |output|; 0
            for exact copies.
        compared: number of inputs whose outputs were compared.
        changed: how many of them are classified differently; None if nothing is classified.
        metrics: metrics of the task on these inputs, computed with onnxruntime; None if they were
            not measured.
        savings: what removing dead units saved; None if that was not tried.
        latency: of the file and, if units were removed, of the network with all units.
        measured: for a packed file, metric → (before, in the file) on the test split; None if there
            was no network or no data to measure it with.
        values: type of the kept values in the file.
    """

    path: str
    kind: str
    bytes: int
    checked: str
    largest_difference: float
    compared: int = 0
    changed: int | None = None
    metrics: Mapping[str, float] | None = None
    savings: Savings | None = None
    latency: tuple[Latency, ...] = ()
    measured: dict[str, tuple[float, float]] | None = None
    values: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        savings = self.savings.to_dict() if self.savings else None
        return {**asdict(self), "savings": savings}
