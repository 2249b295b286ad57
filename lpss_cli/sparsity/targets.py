"""Target sparsities: parsing, checking and counting zeros; without PyTorch."""

from __future__ import annotations

from lpss_cli.errors import InputError


def zero_count(total: int, sparsity: float) -> int:
    """Return how many of N = ``total`` weights a sparsity s makes zero: exactly ``round(s·N)``."""
    return round(sparsity * total)


def parse_sparsity(value: str | float, option: str = "--sparsity") -> float:
    """Parse ``0.9``, ``90%`` or ``10x`` (one weight in ten kept) as the fraction of zeros.

    Args:
        value: as it was typed.
        option: the option it was typed for, for the message.

    Raises:
        InputError: it has none of the three forms.
    """
    text = str(value)
    try:
        if text[-1:] in ("x", "×"):
            return 1.0 - 1.0 / float(text[:-1])
        return float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"{option} {text!r} is not a number", "write 0.9, 90% or 10x (one weight in ten kept)"
        ) from None


def check_sparsity(sparsity: float, total: int | None = None) -> float:
    """Return the sparsity s if it is in [0, 1) and leaves a weight.

    Args:
        sparsity: the fraction of zeros.
        total: number N of prunable weights; None: unknown.

    Raises:
        InputError: it is out of range, there is no prunable weight, or ``round(s·N)`` is N.
    """
    if not 0 <= sparsity < 1:
        percent = f"{sparsity / 100:g} or {sparsity:g}%" if 1 < sparsity < 100 else "0.9 or 90%"
        raise InputError(
            f"a sparsity of {sparsity:g} is outside [0, 1)",
            f"it is the fraction of zeros: {percent}, or 10x for one weight in ten kept",
        )
    if total == 0 and sparsity > 0:
        raise InputError(
            "the network has no prunable weight", "sparsity needs Linear or Conv layers"
        )
    if total and zero_count(total, sparsity) >= total:
        raise InputError(
            f"a sparsity of {sparsity:.10g} leaves none of the {total:,} prunable weights",
            f"ask for at most {1 - 1 / total:.8g}, or skip fewer layers",
        )
    return sparsity
