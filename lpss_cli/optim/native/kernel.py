"""Calling the library on tensors: which it can take, and their rows shared among threads."""

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

from lpss_cli.optim.lp_step import LARGEST_GAIN_STEP, Rows, Rule
from lpss_cli.optim.native.build import library

# Fewer numbers than this are not worth waking a thread for.
_WORTH_SHARING = 1 << 16
_SYMBOLS = {torch.float32: "lpsgd_float32", torch.float64: "lpsgd_float64"}


class _Options(ctypes.Structure):
    """What ``lpsgd.cpp`` calls Options."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("p", "eta", "momentum", "fresh")),
        *((name, ctypes.c_double) for name in ("gain_rate", "gain_clip")),
        *((name, ctypes.c_int64) for name in ("nesterov", "learned", "unit")),
    )


def fits(rows: Rows) -> bool:
    """Whether the library is there and takes these rows: on a CPU, each in one piece."""
    weight = rows.weight
    if rows.row_dim != 0 or weight.device.type != "cpu" or weight.dtype not in _SYMBOLS:
        return False
    tensors = (weight, rows.grad, rows.momentum, rows.latent)
    return _alike(tensors, weight.dtype) and library() is not None


def _alike(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether plain tensors have one format and one layout in which a row lies in one piece."""
    # What subclasses and lazily negated tensors hold is not what their memory holds.
    plain = all(type(t) is Tensor and t.dtype == dtype and not t.is_neg() for t in tensors)
    if not plain or any(t.layout != torch.strided or not t.is_cpu for t in tensors):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    last = torch.channels_last
    return tensors[0].dim() == 4 and all(t.is_contiguous(memory_format=last) for t in tensors)


def step(rows: Rows, rule: Rule) -> None:
    """Take a step on all rows, in place, on as many threads as PyTorch uses.

    Rows do not depend on each other, so the result does not depend on the threads.
    """
    count, size = rows.weight.shape[0], rows.weight.numel()
    threads = min(torch.get_num_threads(), count) if size >= _WORTH_SHARING else 1
    call = _call(rows, rule)
    if threads <= 1:
        call(0, count)
    else:
        cuts = [count * part // threads for part in range(threads + 1)]
        list(_pool(os.getpid(), threads).map(call, cuts[:-1], cuts[1:]))
    increment_version(rows.weight)  # autograd refuses a backward pass through replaced numbers


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lpsgd")


def _call(rows: Rows, rule: Rule) -> Callable[[int, int], None]:
    """Return the step on a range of rows; the caller keeps the tensors alive."""
    learned = rows.gain_momentum is not None
    options = _Options(
        rule.p, rule.eta, rule.momentum, 1.0 - rule.dampening, rule.gain_rate, LARGEST_GAIN_STEP,
        rule.nesterov, learned, rule.unit,
    )  # fmt: skip
    pointers = [
        t.data_ptr() for t in (rows.weight, rows.grad, rows.momentum, rows.latent, rows.gain)
    ]
    pointers.append((rows.gain if rows.gain_momentum is None else rows.gain_momentum).data_ptr())
    function, fan_in = _function(rows.weight.dtype), math.prod(rows.weight.shape[1:])

    def call(first: int, last: int) -> None:
        function(*pointers, fan_in, first, last, ctypes.byref(options))

    return call


@cache
def _function(dtype: torch.dtype) -> Any:
    function = getattr(library(), _SYMBOLS[dtype])
    function.argtypes = (
        *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 3, ctypes.POINTER(_Options),
    )  # fmt: skip
    function.restype = None
    return function
