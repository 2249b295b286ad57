"""Finding a C++ compiler, building the library with it, and keeping what was built."""

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

#: Set to 0, nothing is compiled and every step is one in PyTorch's operations.
SWITCH = "LPSS_COMPILE"
_COMPILERS = ("c++", "g++", "clang++")
_SOURCES = Path(__file__).parent
# Vector loops without -ffast-math, which would also change how other libraries round.
_FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno",
    "-fno-trapping-math", "-march=native",
)  # fmt: skip
# A compiler that takes longer than this is of no use.
_PATIENCE = 120.0


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, built if need be; None where that cannot be done."""
    found = _found()
    if found is None:
        return None
    path, target = found
    sources = b"".join(f.read_bytes() for f in sorted(_SOURCES.glob("*pp")))
    facts = "\0".join((target, *_FLAGS)).encode()
    name = f"lpsgd-{hashlib.sha256(facts + sources).hexdigest()[:32]}.so"
    try:
        directory = _private(_cache())
        return _loaded(directory / name, path)
    except OSError:  # a home that cannot be written, or that programs may not run from
        pass
    try:
        with tempfile.TemporaryDirectory(prefix="lpss-") as elsewhere:
            return _loaded(Path(elsewhere) / name, path)
    except OSError:
        return None


@cache
def compiler() -> str | None:
    """Return name and version of the compiler that is used, or None."""
    found = _found()
    if found is None:
        return None
    path, target = found
    version = re.search(r'__VERSION__ "(.*?)"', target)
    return f"{Path(path).name} {version[1] if version else 'of unknown version'}"


@cache
def _found() -> tuple[str, str] | None:
    """Path of the first compiler that works, and all it says about itself and the processor."""
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
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()
    return home / "lpss"


def _private(directory: Path) -> Path:
    """Return the directory, made if need be: what is in it is run, so nobody else may write it.

    Raises:
        OSError: it cannot be made, or others can write it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"others can write {directory}")
    return directory


def _loaded(path: Path, compiler_path: str) -> ctypes.CDLL:
    """Load what was built before, or build it first.

    Raises:
        OSError: neither works.
    """
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged: build it again
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
