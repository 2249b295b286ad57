"""Calls the library on tensors: which ones it can take, and how threads share their rows."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lpss_cli.optim.lp_step import MAX_LOG_RADIUS_STEP, Rows, Rule
from lpss_cli.optim.native.build import library

# Smaller weights are not worth the start of a thread.
_MIN_SIZE_FOR_THREADS = 1 << 16
_SYMBOLS = {torch.float32: "lpsgd_float32", torch.float64: "lpsgd_float64"}


class _Options(ctypes.Structure):
    """The ``Options`` of ``lpsgd.cpp``."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("p", "eta", "momentum", "fresh")),
        *((name, ctypes.c_double) for name in ("radius_rate", "max_log_radius_step")),
        *((name, ctypes.c_int64) for name in ("nesterov", "learned", "unit")),
    )


def fits(rows: Rows) -> bool:
    """Whether there is a library and it can take these rows: on a CPU, each row contiguous."""
    weight = rows.weight
    if rows.row_dim != 0 or weight.device.type != "cpu" or weight.dtype not in _SYMBOLS:
        return False
    tensors = (weight, rows.grad, rows.momentum, rows.latent)
    return _have_contiguous_rows(tensors, weight.dtype) and library() is not None


def _have_contiguous_rows(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether all are plain tensors of this format and of one layout with contiguous rows."""
    # The memory of subclasses and of lazily negated tensors does not hold their values.
    plain = all(type(t) is Tensor and t.dtype == dtype and not t.is_neg() for t in tensors)
    if not plain or any(t.layout != torch.strided or not t.is_cpu for t in tensors):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    last = torch.channels_last
    return tensors[0].dim() == 4 and all(t.is_contiguous(memory_format=last) for t in tensors)


def step(rows: Rows, rule: Rule) -> None:
    """Take a step on all rows, in place, on as many threads as PyTorch uses.

    Rows are independent of each other, so the result does not depend on the number of threads.
    """
    count, size = rows.weight.shape[0], rows.weight.numel()
    threads = min(torch.get_num_threads(), count) if size >= _MIN_SIZE_FOR_THREADS else 1
    step_rows = _bind(rows, rule)
    if threads <= 1:
        step_rows(0, count)
    else:
        bounds = [count * part // threads for part in range(threads + 1)]
        list(_pool(os.getpid(), threads).map(step_rows, bounds[:-1], bounds[1:]))
    increment_version(rows.weight)  # autograd then refuses a backward pass through the old values


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process: a fork does not inherit those of its parent."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lpsgd")


def _bind(rows: Rows, rule: Rule) -> Callable[[int, int], None]:
    """Return a function that steps rows first to last - 1; the caller keeps the tensors alive."""
    learned = rows.radius_momentum is not None
    options = _Options(
        rule.p, rule.eta, rule.momentum, 1.0 - rule.dampening, rule.radius_rate,
        MAX_LOG_RADIUS_STEP, rule.nesterov, learned, rule.unit,
    )  # fmt: skip
    # Where radii are not learned, their momentum is not touched.
    radius_momentum = rows.radius if rows.radius_momentum is None else rows.radius_momentum
    tensors = (rows.weight, rows.grad, rows.momentum, rows.latent, rows.radius, radius_momentum)
    pointers = [t.data_ptr() for t in tensors]
    function, fan_in = _function(rows.weight.dtype), math.prod(rows.weight.shape[1:])

    def step_rows(first: int, last: int) -> None:
        function(*pointers, fan_in, first, last, ctypes.byref(options))

    return step_rows


@cache
def _function(dtype: torch.dtype) -> Any:
    function = getattr(library(), _SYMBOLS[dtype])
    function.argtypes = (
        *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 3, ctypes.POINTER(_Options),
    )  # fmt: skip
    function.restype = None
    return function
