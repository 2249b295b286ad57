"""Whether this environment can do the work: packages, devices, disk space."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from lpss_cli.errors import one_line
from lpss_cli.models import FAMILIES
from lpss_cli.version import __version__

#: What lpss requires: distribution → module.
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "numpy": "numpy",
    "scikit-learn": "sklearn",
}
#: What some options require: package → (the option, the extra of lpss that installs it).
OPTIONAL = {
    **{f.library: (f"--arch {f.usage}", f.extra) for f in FAMILIES if f.extra},
    "tensorboard": ("--tensorboard DIR", "tensorboard"),
}
# Bytes that the files of a large network need.
_MIN_FREE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: ``fine``, ``note`` or ``wrong``; only ``wrong`` keeps lpss from working.
        text: what was found and, if it is not fine, what to do about it.
    """

    name: str
    state: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return asdict(self)


def examine(directory: Path) -> list[Finding]:
    """Check the environment, and a directory that files would be written to."""
    findings = [Finding("lpss", "fine", f"{__version__}, Python {platform.python_version()}")]
    for name, module in REQUIRED.items():
        findings.append(_guarded(name, partial(_check_package, name, module)))
    for name, (use, extra) in OPTIONAL.items():
        findings.append(_check_optional(name, use, extra))
    findings += _check_devices()
    findings.append(_guarded("compiler", _check_compiler))
    findings.append(_guarded("loading", _check_loading))
    findings.append(_guarded("files", partial(_check_directory, directory)))
    return findings


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """Run a check, and report whatever a broken installation raises as its finding."""
    try:
        return check()
    except Exception as error:
        return Finding(name, "wrong", f"{one_line(error)}; install it again")


def _check_package(name: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return Finding(name, "wrong", f"not installed; pip install {name}")
    return Finding(name, "fine", metadata.version(name))


def _check_optional(name: str, use: str, extra: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        text = f"not installed; needed for {use}: pip install lpss-cli[{extra}]"
        return Finding(name, "note", text)
    return _guarded(name, partial(_check_package, name, name))


def _check_devices() -> list[Finding]:
    try:
        return list(_devices())
    except Exception as error:  # whatever a broken installation raises
        return [Finding("devices", "wrong", one_line(error))]


def _devices() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding("CPU", "fine", f"{os.cpu_count()} cores, PyTorch uses up to {threads} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        torch.ones(8, device=f"cuda:{index}").sum().item()  # fails if the driver is too old
        yield Finding(f"cuda:{index}", "fine", f"{properties.name}, {memory}")
    if torch.backends.mps.is_available():
        yield Finding("mps", "fine", "Apple GPU")
    if not torch.cuda.device_count() and not torch.backends.mps.is_available():
        yield Finding("GPU", "note", "none found; training runs on the CPU")


def _check_compiler() -> Finding:
    from lpss_cli.optim import native

    if native.library() is None:
        text = f"no C++ compiler works, or {native.SWITCH}=0 is set; LpSGD's steps take longer"
        return Finding("compiler", "note", text)
    return Finding("compiler", "fine", f"{native.compiler()}, for LpSGD's steps on the CPU")


def _check_loading() -> Finding:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("", "0"):
        return Finding(
            "loading", "note",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: lpss still refuses pickled code, but other "
            "programs will run it",
        )  # fmt: skip
    return Finding("loading", "fine", "pickled code is refused")


def _check_directory(directory: Path) -> Finding:
    if not os.access(directory, os.W_OK):
        return Finding("files", "wrong", f"cannot write to {directory}; work in another directory")
    free = shutil.disk_usage(directory).free
    text = f"{free / 2**30:.1f} GiB free in {directory}"
    if free < _MIN_FREE:
        return Finding("files", "note", f"{text}; large networks will not fit")
    return Finding("files", "fine", text)


def versions() -> str:
    """Return the line of ``lpss --version``, which names what a bug report should name."""
    python = platform.python_version()
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        return f"lpss {__version__}, Python {python}, no torch: {one_line(error)}"
    return f"lpss {__version__}, torch {torch.__version__}, Python {python}, {_device_name()}"


def _device_name() -> str:
    """Return the name of the device that ``--device auto`` chooses."""
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps or cpu" if torch.backends.mps.is_available() else "cpu"
