"""Schedules: pure functions of progress, the finished fraction of training in [0, 1]."""

from __future__ import annotations

import math


def warmup_cosine(progress: float, warmup: float) -> float:
    """Linear rise over the first ``warmup`` of training, then half a cosine down to 0.

    The first value is above 0 only with no warm-up; every value lies in [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    if warmup >= 1:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def cubic(progress: float, begin: float, end: float, start: float, target: float) -> float:
    """Sparsity ``target + (start - target)(1 - t)³`` with t rising from 0 to 1 on [begin, end].

    Zhu & Gupta, arXiv:1710.01878, equation 1: fast while there is much to take.
    """
    if progress < begin:
        return start
    if progress >= end:
        return target
    t = (progress - begin) / (end - begin)
    return target + (start - target) * (1.0 - t) ** 3
