"""Schedules: pure functions of progress, the finished fraction of training in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(progress: float, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of training, then half a cosine down to 0.

    The first value is above 0 only with no warm-up; every value lies in [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    if warmup >= 1:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def warmup_step_decay(progress: float, warmup: float, drops: Sequence[float]) -> float:
    """Linear rise over the first ``warmup`` of training, then 1, divided by 10 at every drop."""
    rise = progress / warmup if progress < warmup else 1.0
    return rise * 0.1 ** sum(progress >= drop for drop in drops)


def logistic_ramp(progress: float, end: float, centre: float, width: float) -> float:
    """A logistic curve around ``centre``, rescaled to 0 at the start and to 1 from ``end`` on.

    Args:
        progress: finished part of training.
        end: where it reaches 1.
        centre: where the unscaled curve is at one half.
        width: the part of training over which the unscaled curve goes from 1/2 to 0.73, ≥ 0.01.
    """
    if progress >= end:
        return 1.0
    low, high = (_logistic((x - centre) / width) for x in (0.0, end))
    return (_logistic((progress - centre) / width) - low) / (high - low)


def _logistic(x: float) -> float:
    # Both forms are the same; each overflows on the other's side, and underflows nowhere.
    return 1.0 / (1.0 + math.exp(-x)) if x > 0 else math.exp(x) / (1.0 + math.exp(x))


def cubic_sparsity(progress: float, begin: float, end: float, start: float, target: float) -> float:
    """Sparsity ``target + (start - target)(1 - t)³`` with t rising from 0 to 1 on [begin, end].

    Zhu & Gupta, arXiv:1710.01878, equation 1: fast while there is much to take.
    """
    if progress < begin:
        return start
    if progress >= end:
        return target
    t = (progress - begin) / (end - begin)
    return target + (start - target) * (1.0 - t) ** 3
