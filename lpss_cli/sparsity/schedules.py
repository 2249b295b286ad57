"""Schedules: pure functions of progress, the fraction of training that is done, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(progress: float, warmup: float) -> float:
    """Rise linearly over the first ``warmup`` of training, then fall to 0 along half a cosine.

    Every value is in [0, 1]. The first one is 0 unless there is no warm-up.
    """
    if progress < warmup:
        return progress / warmup
    if warmup >= 1:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def warmup_step_decay(progress: float, warmup: float, drops: Sequence[float]) -> float:
    """Rise linearly to 1 over the first ``warmup`` of training, then divide by 10 at every drop.

    Args:
        progress: fraction of training that is done.
        warmup: fraction of training after which the rise ends.
        drops: fractions of training at which the value is divided.
    """
    rise = progress / warmup if progress < warmup else 1.0
    return rise * 0.1 ** sum(progress >= drop for drop in drops)


def logistic_ramp(progress: float, end: float, center: float, width: float) -> float:
    """Follow a logistic curve, rescaled to be 0 at the start and 1 from ``end`` on.

    Args:
        progress: fraction of training that is done.
        end: progress at which the ramp reaches 1.
        center: progress at which the curve, before rescaling, is 1/2.
        width: fraction of training over which the curve, before rescaling, goes from 1/2 to 0.73,
            ≥ 0.01.
    """
    if progress >= end:
        return 1.0
    low, high = (_logistic((x - center) / width) for x in (0.0, end))
    return (_logistic((progress - center) / width) - low) / (high - low)


def _logistic(x: float) -> float:
    # The two forms are equal, and each would overflow on the other's side.
    return 1.0 / (1.0 + math.exp(-x)) if x > 0 else math.exp(x) / (1.0 + math.exp(x))


def cubic_sparsity(progress: float, begin: float, end: float, start: float, target: float) -> float:
    """Return ``target + (start - target)(1 - t)³``, with t rising from 0 to 1 on [begin, end].

    Zhu & Gupta, arXiv:1710.01878, equation 1: sparsity rises fast while there is much to prune.
    """
    if progress < begin:
        return start
    if progress >= end:
        return target
    t = (progress - begin) / (end - begin)
    return target + (start - target) * (1.0 - t) ** 3
