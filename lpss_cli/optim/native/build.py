"""Finds a C++ compiler, builds the library with it, and caches what was built."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

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
