"""The lpss artifact: ``{"lpss": {...}, "state_dict": ...}``, plain containers and tensors.

On request, ``"init"`` holds the tensors that training began from.

Nobody needs lpss to use one: ``torch.load(path, weights_only=True)["state_dict"]``.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError
from lpss_cli.sparsity.prunable import without_tied
from lpss_cli.utils import digest
from lpss_cli.utils.files import atomic_write, write_error
from lpss_cli.version import __version__

# Bytes of a record and of the archive around it, roughly.
_OVERHEAD = 50_000


def save(
    path: Path,
    state_dict: dict[str, Tensor],
    meta: dict[str, Any],
    init: dict[str, Tensor] | None = None,
) -> None:
    """Write an artifact in one piece and read it back.

    Args:
        path: where to write it; an existing file is replaced.
        state_dict: tensors on any device; they are stored contiguously on the CPU.
        meta: the record: plain containers of numbers, texts and None.
        init: the tensors that training began from, if they are to be kept.

    Raises:
        InputError: the disk is full, the directory is gone, or the record holds something else
            than plain containers.
    """
    parts = {"state_dict": _storable(state_dict), "init": _storable(init) if init else None}
    try:
        record = digest.seal_record(meta, parts)
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
        except RuntimeError as error:  # what PyTorch's writer raises on a full disk
            raise write_error(path, error) from error
        try:
            read(temporary)  # compares the digest, which covers every bit
        except InputError as error:
            raise InputError(f"{path} reads back differently", "check the disk") from error


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file should hold them: contiguous, on the CPU, tied ones still tied.

    A view is copied: for a view, ``torch.save`` would write the whole storage that it looks into.
    """
    copies: dict[Any, Tensor] = {}
    storable = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
        if key not in copies or not tensor.numel():
            copy = tensor.cpu().contiguous()
            fills_storage = copy.untyped_storage().nbytes() == copy.numel() * copy.element_size()
            copies[key] = copy if fills_storage else copy.clone()
        storable[name] = copies[key]
    return storable


def estimated_bytes(state_dict: Mapping[str, Tensor]) -> int:
    """Return roughly how many bytes a file of these tensors takes; tied tensors count once."""
    tensors = without_tied(state_dict).values()
    return sum(t.numel() * t.element_size() for t in tensors) + _OVERHEAD


def versions() -> dict[str, str]:
    """Return the versions, and the number of threads, on which the bits of a run depend."""
    return {
        "lpss": __version__,
        "torch": str(torch.__version__),  # a str subclass, which safe loading refuses
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if found is None:  # Python 3.10
            found = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                found.update(block)
        return found.hexdigest()
