"""What a training job gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpss_cli.reporting import Report, report


@dataclass(frozen=True)
class Outcome:
    """What a training job gave.

    Attributes:
        report: the written artefact, read back and measured.
        primary: name of the metric that counts.
        before: metrics of the input on the same data; None when trained from scratch.
        before_cut: metrics just before an exact cut that ends the training (GSM's), after which
            nothing can recover; None where training goes on.
        after: metrics of the result.
        measured_on: ``test`` or ``holdout``.
        seconds: wall time of the training loop, earlier parts of a resumed run included.
    """

    report: Report
    primary: str
    before: dict[str, float] | None
    after: dict[str, float]
    measured_on: str
    seconds: float
    before_cut: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "out": self.report.path,
            "primary_metric": self.primary,
            "measured_on": self.measured_on,
            "before": self.before,
            "before_cut": self.before_cut,
            "after": self.after,
            "seconds": self.seconds,
            "report": self.report.to_dict(),
        }


def outcome_of(path: Path) -> Outcome:
    """Return the outcome of a finished job from the artefact that it wrote.

    Raises:
        InputError: the file is damaged.
    """
    written = report(path)
    meta, metrics = written.meta, written.meta["metrics"]
    return Outcome(
        written,
        meta["primary_metric"],
        metrics["before"],
        metrics["after"],
        metrics["on"],
        meta["seconds"],
        metrics["before_cut"],
    )
