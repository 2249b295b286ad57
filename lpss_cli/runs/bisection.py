"""Bisection over sparsities, and what it walked through: plain numbers, no networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Try:
    """One sparsity that was tried.

    Attributes:
        sparsity: zeros / prunable weights.
        metric: the primary metric on the held-out part; None: training diverged.
        drop: hundredths of the metric that it lies below the reference; None if it diverged.
        kept: whether that is within what is allowed.
    """

    sparsity: float
    metric: float | None
    drop: float | None
    kept: bool


@dataclass(frozen=True)
class Search:
    """What a search walked through, and what it found.

    Attributes:
        allowed: drop, in hundredths of the metric.
        primary: the metric's name.
        examples: held-out examples that it was measured on.
        epochs: of every try.
        given: the input's own metric on them.
        reference: what drops are counted from.
        curve: the tries, in their order.
        sparsity: the largest that was kept.
    """

    allowed: float
    primary: str
    examples: int
    epochs: int
    given: float
    reference: float
    curve: tuple[Try, ...]
    sparsity: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for the record."""
        return {**asdict(self), "curve": [asdict(one) for one in self.curve]}


def bisect(
    measure: Callable[[float], Try], accept: Callable[[], None], tries: int, low: float, high: float
) -> list[Try]:
    """Try ``low``, then halve the range of log(kept part) between what was kept and what was not.

    Args:
        measure: sparsity → what it gave.
        accept: told that the last one measured is where the next one starts.
        tries: measurements at most, from 1 up.
        low: the first sparsity.
        high: another; it is not tried itself.

    Returns:
        The tries in their order; only the first one if even that was not kept.
    """
    walked = [measure(low)]
    if not walked[0].kept:
        return walked
    accept()
    left, right = -math.log2(1 - low), -math.log2(1 - high)
    while len(walked) < tries:
        middle = (left + right) / 2
        walked.append(measure(round(1 - 2**-middle, 6)))
        if walked[-1].kept:
            accept()
            left = middle
        else:
            right = middle
    return walked
