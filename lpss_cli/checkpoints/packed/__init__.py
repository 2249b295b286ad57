"""The packed format ``.lpss``: the smallest faithful file of a sparse network.

``pack`` makes the bytes of a file from a state_dict, ``unpack`` reads them; docs/format.md says
what they are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.checkpoints.packed import container, tensors
from lpss_cli.checkpoints.packed.coding import Array, MalformedError, need
from lpss_cli.checkpoints.packed.container import MAGIC
from lpss_cli.checkpoints.packed.header import LARGEST, Entry, whole
from lpss_cli.checkpoints.packed.tensors import Encoded
from lpss_cli.checkpoints.packed.values import CHOICES, DTYPES, FLOATS
from lpss_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BIAS_VALUES",
    "CHOICES",
    "DEFAULT_VALUES",
    "MAGIC",
    "VALUE_BYTES",
    "Entry",
    "MalformedError",
    "Unpacked",
    "check",
    "pack",
    "unpack",
]

DEFAULT_VALUES = "fp16"
#: Bytes of one stored value, by choice; those of the tensor's own type for ``fp32``.
VALUE_BYTES = {"fp16": 2, "bf16": 2, "int8": 1}
#: The choice for biases: they have no rows of which 8 bits could be a part.
BIAS_VALUES = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "fp16"}


@dataclass(frozen=True)
class Unpacked:
    """A file's tensors on the CPU, its facts, and how each tensor is stored."""

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    about: dict[str, Any]
    entries: list[Entry]


def pack(
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    prunable: Collection[str],
    values: str = DEFAULT_VALUES,
    *,
    biases: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
    compress: bool = True,
) -> bytes:
    """Return the bytes of a packed file.

    Args:
        state: finite tensors by name, on any device.
        meta: plain containers; numbers that are not finite become null.
        prunable: names of the tensors whose zeros are left out and whose values may be rounded;
            all others but the biases are kept bit for bit.
        values: a name of ``CHOICES``; ``fp32`` keeps the prunable ones bit for bit too, but for
            the sign of zeros.
        biases: names of short tensors that are stored whole and may be rounded, to 16 bits at most.
        about: what the file says of itself, like the hash of its source; the choice of values is
            added.
        compress: use zstd where it makes a part shorter.

    Raises:
        InputError: a tensor that is not finite, of a type that is not stored, or too large; facts
            that are not JSON; an unknown choice.
    """
    if values not in CHOICES:
        raise InputError(f"unknown --values {values!r}", nearest(values, tuple(CHOICES)))
    arrays = {name: _to_array(name, tensor) for name, tensor in state.items()}
    table = _encoded(arrays, prunable, biases, values, compress)
    try:
        return container.write(
            _plain(meta), {"values": values, **_plain(about or {})}, table, compress
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the checkpoint's facts cannot be packed: {error}", "use --format safetensors"
        ) from None


def _encoded(
    arrays: Mapping[str, tuple[str, Array]],
    prunable: Collection[str],
    biases: Collection[str],
    values: str,
    compress: bool,
) -> list[Encoded]:
    """Return the tensors as they go into the file, those that are there twice once."""
    twins = _twins(arrays)
    sparse = {twins[name] for name in prunable if name in twins}
    # A bias may have the bits of a tensor that is not rounded, such as the mean of a norm.
    short = {twins[name] for name in biases if name in twins}
    short -= {twins[name] for name in arrays if name not in biases}
    table: list[Encoded] = []
    numbers = {name: number for number, name in enumerate(arrays)}
    for name, (dtype, array) in arrays.items():
        if twins[name] != name:
            copy = whole(name, dtype, array.shape, same=numbers[twins[name]])
            table.append(Encoded(copy, [], []))
        elif name in sparse and dtype in FLOATS:
            table.append(tensors.encode_sparse(name, dtype, array, values, compress))
        elif name in short and dtype in FLOATS:
            table.append(tensors.encode_rounded(name, dtype, array, BIAS_VALUES[values]))
        else:
            table.append(tensors.encode_dense(name, dtype, array))
    return table


def check(state: Mapping[str, Tensor]) -> None:
    """Refuse what ``pack`` would refuse of the tensors.

    Raises:
        InputError: as ``pack``.
    """
    for name, tensor in state.items():
        _to_array(name, tensor)


def unpack(data: bytes) -> Unpacked:
    """Read the bytes of a packed file.

    Raises:
        MalformedError: they are damaged, or of another format.
    """
    content = container.read(data)
    pairs = zip(content.entries, content.arrays, strict=True)
    state = {entry.name: _to_tensor(entry, array) for entry, array in pairs}
    return Unpacked(state, content.meta, content.about, content.entries)


def _to_array(name: str, tensor: Tensor) -> tuple[str, Array]:
    """Return the type's name and the tensor's bits.

    Raises:
        InputError: as ``pack``.
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout != torch.strided:
        raise InputError(
            f"{name} is of type {dtype}, which is not packed",
            f"leave pack out of --format; packed are {', '.join(DTYPES)}",
        )
    count = math.prod(filter(None, tensor.shape))  # an empty tensor may have long sides too
    if count > LARGEST:
        raise InputError(f"{name} has {count:,} entries", f"{LARGEST:,} are packed")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError(
            f"{name} holds values that are not finite", "the network diverged; pack an earlier one"
        )
    plain = tensor.detach().cpu().contiguous()
    if dtype == "bfloat16":
        return dtype, plain.view(torch.int16).numpy().view(np.uint16)
    array = plain.numpy()
    return dtype, (array.view(np.uint8) if dtype == "bool" else array).astype(
        DTYPES[dtype], copy=False
    )


def _to_tensor(entry: Entry, array: Array) -> Tensor:
    import torch

    if entry.dtype == "bool":
        need(not (array > 1).any(), f"a truth value that is none in {entry.name!r:.80}")
        return torch.from_numpy(array.view(np.bool_))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if entry.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _twins(arrays: Mapping[str, tuple[str, Array]]) -> dict[str, str]:
    """Map every name to the first tensor with the same bits: tied weights are stored once."""
    first: dict[tuple[Any, ...], list[str]] = {}
    found = {}
    for name, (dtype, array) in arrays.items():
        key = (dtype, array.shape, zlib.crc32(array.tobytes()))
        candidates = first.setdefault(key, [])
        bits = array.tobytes() if candidates else b""
        twin = next((other for other in candidates if arrays[other][1].tobytes() == bits), name)
        if twin == name:
            candidates.append(name)
        found[name] = twin
    return found


def _plain(content: Any) -> Any:
    """Return facts as JSON has them: no NaN, no infinity, no tuple."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    return content
