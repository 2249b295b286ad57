"""Numbers as people read them."""

from __future__ import annotations

_FRACTIONS = ("accuracy", "balanced_accuracy")


def is_fraction(name: str) -> bool:
    """Whether a metric is a part of 1, which people read in percent."""
    return name in _FRACTIONS


def metric(name: str, value: float) -> str:
    """Return a metric for people: accuracies in percent, the rest with four digits."""
    return f"{value:.2%}" if is_fraction(name) else f"{value:.4g}"


def size(count: int) -> str:
    """Return bytes for people, in units of 1000."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def share(fraction: float) -> str:
    """Return a sparsity in percent, with the digits that tell it from 100 %."""
    digits = 2
    while fraction < 1 and digits < 8 and round(100 * fraction, digits) == 100:
        digits += 1
    return f"{fraction:.{digits}%}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
