"""The compiled step: built with the C++ compiler that is found, cached, and called on tensors.

:func:`library` builds or loads the library, :func:`fits` says which rows it can take, and
:func:`step` calls it, with the rows shared among threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lpss_cli.optim.lp_step import MAX_LOG_RADIUS_STEP, Rows, Rule

#: If this environment variable is 0, nothing is compiled: steps are taken in PyTorch operations.
SWITCH = "LPSS_COMPILE"
_COMPILERS = ("c++", "g++", "clang++")
_SOURCES = Path(__file__).parent
# Vector loops without -ffast-math, which would also change how other libraries round.
_FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno",
    "-fno-trapping-math", "-march=native",
)  # fmt: skip
# Seconds after which a compiler is given up.
_TIMEOUT = 120.0


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, built if it is not cached yet; None where it cannot be built."""
    found = _find_compiler()
    if found is None:
        return None
    compiler_path, target = found
    sources = b"".join(f.read_bytes() for f in sorted(_SOURCES.glob("*pp")))
    build = "\0".join((target, *_FLAGS)).encode()
    name = f"lpsgd-{hashlib.sha256(build + sources).hexdigest()[:32]}.so"
    try:
        directory = _private_directory(_cache_directory())
        return _load_or_build(directory / name, compiler_path)
    except OSError:  # the home cannot be written, or nothing in it may be executed
        pass
    try:
        with tempfile.TemporaryDirectory(prefix="lpss-") as temporary:
            return _load_or_build(Path(temporary) / name, compiler_path)
    except OSError:
        return None


@cache
def compiler() -> str | None:
    """Return the name and the version of the compiler; None where there is none that works."""
    found = _find_compiler()
    if found is None:
        return None
    path, target = found
    version = re.search(r'__VERSION__ "(.*?)"', target)
    return f"{Path(path).name} {version[1] if version else 'of unknown version'}"


@cache
def _find_compiler() -> tuple[str, str] | None:
    """Return the path of the first compiler that works, and the macros that it defines.

    The macros tell its version and the processor that it compiles for.
    """
    if os.environ.get(SWITCH, "").strip() == "0" or os.name != "posix":
        return None
    for name in (os.environ.get("CXX", ""), *_COMPILERS):
        path = shutil.which(name) if name else None
        target = (
            _output([path, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]) if path else None
        )
        if path and target:
            return path, target
    return None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _cache_directory() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    cache_home = Path(configured) if os.path.isabs(configured) else Path("~/.cache").expanduser()
    return cache_home / "lpss"


def _private_directory(directory: Path) -> Path:
    """Create the directory if it does not exist, and return it.

    Its files are executed, so nobody else may be able to write to it.

    Raises:
        OSError: it cannot be created, or others can write to it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"others can write to {directory}")
    return directory


def _load_or_build(path: Path, compiler_path: str) -> ctypes.CDLL:
    """Load the library if it was built before; build it first otherwise.

    Raises:
        OSError: neither works.
    """
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # it is damaged: build it again
            pass
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        command = [compiler_path, *_FLAGS, "-o", temporary, str(_SOURCES / "lpsgd.cpp")]
        if _output(command) is None:
            raise OSError("the compiler failed")
        built = ctypes.CDLL(temporary)
        os.replace(temporary, path)
        return built
    finally:
        Path(temporary).unlink(missing_ok=True)


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
