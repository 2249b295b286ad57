"""The packed format ``.lpss``: the smallest faithful file of a sparse network.

:func:`pack` makes the bytes of a file from a state_dict, and :func:`unpack` reads them.
docs/format.md says what they are.

The format is our own on purpose. Sparse formats such as CSR spend an index of four or eight bytes
on each kept weight, and masked safetensors spend as many bytes on a zero as on any other weight.
Here a kept weight costs about the entropy of its position and of its value, a reader takes no more
memory than the file's length warrants, and the zeros come back exactly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.checkpoints.packed import container, tensors
from lpss_cli.checkpoints.packed.coding import Array, MalformedError, require
from lpss_cli.checkpoints.packed.header import MAX_WEIGHTS, EncodedTensor, Entry, dense_entry
from lpss_cli.checkpoints.packed.values import CHOICES, DTYPES, FLOATS
from lpss_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BIAS_VALUES",
    "CHOICES",
    "DEFAULT_VALUES",
    "VALUE_BYTES",
    "Entry",
    "MalformedError",
    "Unpacked",
    "check_packable",
    "pack",
    "unpack",
]

DEFAULT_VALUES = "fp16"
#: Choice → bytes of one stored value. For ``fp32`` it is the size of the tensor's own dtype.
VALUE_BYTES = {"fp16": 2, "bf16": 2, "int8": 1}
#: Choice for weights → choice for biases: a bias has no rows for which an 8-bit code has scales.
BIAS_VALUES = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "fp16"}


@dataclass(frozen=True)
class Unpacked:
    """The content of a packed file.

    Attributes:
        state_dict: the tensors on the CPU.
        meta: what the checkpoint says about its network.
        about: what the file says about itself.
        entries: how each tensor is stored.
    """

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
        prunable: names of the tensors whose zeros are left out and whose values may be rounded.
            All others but the biases are kept bit for bit.
        values: a key of ``CHOICES``. ``fp32`` keeps the prunable tensors bit for bit too, except
            for the sign of zeros.
        biases: names of short tensors that are stored whole and may be rounded, to 16 bits at the
            coarsest.
        about: what the file says about itself, such as the hash of its source; the choice of
            values is added.
        compress: use zstd where it makes a part shorter.

    Raises:
        InputError: a tensor is not finite, is too large or has a dtype that is not stored, ``meta``
            or ``about`` is not JSON, or the choice is unknown.
    """
    if values not in CHOICES:
        raise InputError(f"unknown --values {values!r}", nearest(values, tuple(CHOICES)))
    arrays = {name: _to_array(name, tensor) for name, tensor in state.items()}
    table = _encode(arrays, prunable, biases, values, compress)
    try:
        return container.write(
            _to_json(meta), {"values": values, **_to_json(about or {})}, table, compress
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the checkpoint's metadata cannot be packed: {error}", "use --format safetensors"
        ) from None


def unpack(data: bytes) -> Unpacked:
    """Read the bytes of a packed file.

    Raises:
        MalformedError: they are damaged, or of another format.
    """
    content = container.read(data)
    entries = content.body.entries
    arrays: list[Array] = []
    for entry, (positions, planes) in zip(entries, content.body.sections(), strict=True):
        arrays.append(tensors.decode(entry, positions, planes, arrays))
    pairs = zip(entries, arrays, strict=True)
    state = {entry.name: _to_tensor(entry, array) for entry, array in pairs}
    return Unpacked(state, content.meta, content.about, entries)


def check_packable(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that :func:`pack` would refuse.

    Raises:
        InputError: a tensor is not finite, is too large or has a dtype that is not stored.
    """
    for name, tensor in state.items():
        _to_array(name, tensor)


def _encode(
    arrays: Mapping[str, tuple[str, Array]],
    prunable: Collection[str],
    biases: Collection[str],
    values: str,
    compress: bool,
) -> list[EncodedTensor]:
    """Return the tensors as they go into the file; tensors of the same bits are stored once."""
    originals = _find_copies(arrays)
    sparse = {originals[name] for name in prunable if name in originals}
    # A bias may have the bits of a tensor that must not be rounded, such as the mean of a norm.
    rounded = {originals[name] for name in biases if name in originals}
    rounded -= {originals[name] for name in arrays if name not in biases}
    table: list[EncodedTensor] = []
    indices = {name: index for index, name in enumerate(arrays)}
    for name, (dtype, array) in arrays.items():
        if originals[name] != name:
            copy = dense_entry(name, dtype, array.shape, copy_of=indices[originals[name]])
            table.append(EncodedTensor(copy, [], []))
        elif name in sparse and dtype in FLOATS:
            table.append(tensors.encode_sparse(name, dtype, array, values, compress))
        elif name in rounded and dtype in FLOATS:
            table.append(tensors.encode_rounded(name, dtype, array, BIAS_VALUES[values]))
        else:
            table.append(tensors.encode_dense(name, dtype, array))
    return table


def _find_copies(arrays: Mapping[str, tuple[str, Array]]) -> dict[str, str]:
    """Map every name to the first tensor with the same bits: tied weights are stored once."""
    seen: dict[tuple[Any, ...], list[str]] = {}
    originals = {}
    for name, (dtype, array) in arrays.items():
        key = (dtype, array.shape, zlib.crc32(array.tobytes()))
        candidates = seen.setdefault(key, [])
        bits = array.tobytes() if candidates else b""
        original = next((other for other in candidates if arrays[other][1].tobytes() == bits), name)
        if original == name:
            candidates.append(name)
        originals[name] = original
    return originals


def _to_array(name: str, tensor: Tensor) -> tuple[str, Array]:
    """Return the name of a tensor's dtype, and its bits.

    Raises:
        InputError: see :func:`check_packable`.
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout != torch.strided:
        raise InputError(
            f"{name} is of type {dtype}, which cannot be packed",
            f"leave pack out of --format; it takes {', '.join(DTYPES)}",
        )
    count = math.prod(filter(None, tensor.shape))  # an empty tensor may have long sides too
    if count > MAX_WEIGHTS:
        raise InputError(
            f"{name} has {count:,} entries, and at most {MAX_WEIGHTS:,} can be packed",
            "leave pack out of --format",
        )
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
        require(not (array > 1).any(), f"a truth value other than 0 and 1 in {entry.name!r:.80}")
        return torch.from_numpy(array.view(np.bool_))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if entry.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_json(content: Any) -> Any:
    """Return metadata as JSON can hold it: without NaN, infinity and tuples."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): _to_json(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_to_json(value) for value in content]
    return content
