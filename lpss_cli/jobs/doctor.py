"""Whether this environment can do the work: packages, devices, room to write."""

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
from lpss_cli.version import __version__

#: What lpss needs: distribution → module.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "numpy": "numpy",
    "scikit-learn": "sklearn",
}
#: What some options need: distribution → (module, what it is for).
OPTIONAL = {
    "timm": ("timm", "--arch timm:NAME"),
    "transformers": ("transformers", "folders of the Hugging Face Hub"),
    "tensorboard": ("tensorboard", "--tensorboard DIR"),
}
# Less free room than this will not hold the files of a large network.
_ROOM = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: ``fine``, ``note`` or ``wrong``; only the last keeps lpss from working.
        text: what was found, and what to do about it if it is not fine.
    """

    name: str
    state: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return asdict(self)


def examine(directory: Path) -> list[Finding]:
    """Look at the environment and at a directory that files would be written to."""
    findings = [Finding("lpss", "fine", f"{__version__}, Python {platform.python_version()}")]
    for name, module in NEEDED.items():
        findings.append(_guarded(name, partial(_package, name, module)))
    for name, (module, use) in OPTIONAL.items():
        findings.append(_optional(name, module, use))
    findings += _guarded_all("devices", _devices)
    findings.append(_guarded("compiler", _compiler))
    findings.append(_guarded("loading", _safe_loading))
    findings.append(_guarded("files", partial(_room, directory)))
    return findings


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """Look, and let whatever a broken installation raises be the finding."""
    try:
        return look()
    except Exception as error:
        return Finding(name, "wrong", f"{one_line(error)}; install it again")


def _guarded_all(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except Exception as error:
        return [Finding(name, "wrong", one_line(error))]


def _package(name: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return Finding(name, "wrong", f"not installed; pip install {name}")
    return Finding(name, "fine", metadata.version(name))


def _optional(name: str, module: str, use: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(name, "note", f"not installed; {use} needs it: pip install lpss-cli[{name}]")
    return _guarded(name, partial(_package, name, module))


def _devices() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding("CPU", "fine", f"{os.cpu_count()} cores, PyTorch uses up to {threads} threads")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        torch.ones(8, device=f"cuda:{index}").sum().item()  # a driver can be too old for it
        yield Finding(f"cuda:{index}", "fine", f"{facts.name}, {memory}")
    if torch.backends.mps.is_available():
        yield Finding("mps", "fine", "Apple GPU")
    if not torch.cuda.device_count() and not torch.backends.mps.is_available():
        yield Finding("GPU", "note", "none found; training runs on the CPU")


def _compiler() -> Finding:
    from lpss_cli.optim import native

    if native.library() is None:
        text = f"no C++ compiler works, or {native.SWITCH}=0 is set; LpSGD's steps take longer"
        return Finding("compiler", "note", text)
    return Finding("compiler", "fine", f"{native.compiler()}, for LpSGD's steps on the CPU")


def _safe_loading() -> Finding:
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") not in ("", "0"):
        return Finding(
            "loading", "note",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: lpss refuses pickled code all the same, "
            "other programs will run it",
        )  # fmt: skip
    return Finding("loading", "fine", "pickled code is refused")


def _room(directory: Path) -> Finding:
    if not os.access(directory, os.W_OK):
        return Finding("files", "wrong", f"{directory} cannot be written; work elsewhere")
    free = shutil.disk_usage(directory).free
    text = f"{free / 2**30:.1f} GiB free in {directory}"
    if free < _ROOM:
        return Finding("files", "note", f"{text}; large networks will not fit")
    return Finding("files", "fine", text)


def versions() -> str:
    """Return what ``lpss --version`` says: what a report of a fault should name."""
    python = platform.python_version()
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        return f"lpss {__version__}, Python {python}, no torch: {one_line(error)}"
    return f"lpss {__version__}, torch {torch.__version__}, Python {python}, {_device()}"


def _device() -> str:
    """Return the name of what ``--device auto`` takes."""
    import torch

    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps or cpu" if torch.backends.mps.is_available() else "cpu"
