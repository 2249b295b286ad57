"""The lpss artefact: ``{"lpss": {...}, "state_dict": ...}`` of plain containers and tensors.

On request ``"init"`` holds the tensors that training began from.

A person can use it without lpss: ``torch.load(path, weights_only=True)["state_dict"]``.
"""

from __future__ import annotations

import hashlib
import platform
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.errors import InputError
from lpss_cli.sparsity.prunable import without_tied
from lpss_cli.utils import digest as manifest
from lpss_cli.utils.files import atomic_write, write_error
from lpss_cli.version import __version__

# Bytes of a record and of the archive around it, roughly.
_RECORD = 50_000


def versions() -> dict[str, str]:
    """Return the versions that decide a run's bits."""
    return {
        "lpss": __version__,
        "torch": str(torch.__version__),  # a str subclass, which safe loading refuses
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def save(
    path: Path,
    state_dict: dict[str, Tensor],
    meta: dict[str, Any],
    init: dict[str, Tensor] | None = None,
) -> None:
    """Write an artefact in one piece and read it back.

    Args:
        path: where to; an existing file is replaced.
        state_dict: on any device; stored contiguous on the CPU.
        meta: plain containers of numbers, texts and None.
        init: the tensors that training began from, to be kept beside.

    Raises:
        InputError: the disk is full or the directory went away.
    """
    parts = {"state_dict": _stored(state_dict), "init": _stored(init) if init else None}
    try:
        record = manifest.seal_record(meta, parts)
    except TypeError as error:
        raise InputError(
            f"{path} cannot hold pickled objects: {error}", "give plain containers"
        ) from None
    content: dict[str, Any] = {
        "lpss": record,
        **{name: part for name, part in parts.items() if part is not None},
    }
    with atomic_write(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how PyTorch's writer says it
            raise write_error(path, error) from error
        try:
            read(temporary)  # compares the manifest, which speaks for every bit
        except InputError as error:
            raise InputError(f"{path} reads back differently", "check the disk") from error


def size(state_dict: Mapping[str, Tensor]) -> int:
    """Return about how many bytes a file of these tensors takes; tied ones count once."""
    tensors = without_tied(state_dict).values()
    return sum(t.numel() * t.element_size() for t in tensors) + _RECORD


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file should hold them: contiguous, on the CPU, tied ones still tied.

    A view is copied out: with it, ``torch.save`` would write all the memory it looks into.
    """
    done: dict[Any, Tensor] = {}
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
        if key not in done or not tensor.numel():
            copied = tensor.cpu().contiguous()
            whole = copied.untyped_storage().nbytes() == copied.numel() * copied.element_size()
            done[key] = copied if whole else copied.clone()
        stored[name] = done[key]
    return stored


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


def arch_of(checkpoint: Checkpoint, typed: str | None) -> str | None:
    """Return the network to build: the typed one, else the artefact's own.

    Raises:
        InputError: the artefact names code to import and nobody typed it; or there is no arch.
    """
    from lpss_cli.models import is_import_path

    own = checkpoint.meta.get("arch")
    if typed is not None:
        return typed
    if not isinstance(own, str):
        raise InputError(
            f"{checkpoint.path} does not say which network it is",
            "pass --arch NAME or --arch file.py:factory",
        )
    if is_import_path(own):
        raise InputError(
            f"{checkpoint.path} was made with --arch {own}, code that is never imported unasked",
            f"pass --arch {own} if you trust it",
        )
    return own


# MERGED: Artefacts in a directory, found without reading them whole.
def is_artifact(path: Path) -> bool:
    """Whether a file is an lpss artefact, by a look at its first bytes of pickled structure."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as pickled:
                return b"X\x04\x00\x00\x00lpss" in pickled.read(64)  # the text, pickled
    # An archive can be broken in many ways, and none of them makes it an artefact.
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError,
            StopIteration):  # fmt: skip
        return False


def newest_artifact(directory: Path) -> Path:
    """Return the lpss artefact (``*.pt``) that was written last in a directory.

    Raises:
        InputError: there is none.
    """
    found = [p for p in directory.glob("*.pt") if p.is_file() and is_artifact(p)]
    if not found:
        raise InputError(
            f"there is no lpss artefact in {directory}", "name a file, or run `lpss train` first"
        )
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name))
