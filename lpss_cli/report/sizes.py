"""How small a sparse network's file can be, and how small the files at hand are.

**The information bound.** To say which of a tensor's n weights are kept, when nothing is known but
how many, takes n·H(d) bits, d the density and H(d) = -d log₂ d - (1-d) log₂(1-d) (Shannon 1948).
The bound is this for every prunable tensor, and a fixed number of bytes for each kept value and
each bias, and all other tensors at their raw size; metadata is not counted. A file can be smaller,
for values and masks are not random.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.packed import BIAS_VALUES, VALUE_BYTES
from lpss_cli.sparsity.patterns import bias_names
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

#: A plain zstd of the masked file, for comparison: its level, by the file's length.
_THOROUGH, _LEVELS = 1 << 22, (19, 3)


@dataclass(frozen=True)
class Size:
    """One way to write the network.

    Attributes:
        name: what it is, for people.
        bytes: measured.
        values: type of the values in it.
        against_dense: dense fp32 bytes / these.
        against_bound: these / the information bound with these values; None where that is 0: there
            is nothing but zeros.
    """

    name: str
    bytes: int
    values: str
    against_dense: float
    against_bound: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return asdict(self)


def entropy(density: float) -> float:
    """Bits per weight of a mask of that density in [0, 1]; 1 at a half, 0 at both ends."""
    if density <= 0 or density >= 1:
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def bound(state: Mapping[str, Tensor], prunable: Collection[str], values: str) -> float:
    """Return the information bound in bytes.

    Args:
        state: tensors by name; a tensor that is there twice counts twice.
        prunable: names of the tensors whose zeros count.
        values: type of the kept values: ``fp32`` (each tensor's own type), ``fp16``, ….
    """
    biases = set(bias_names(state, prunable))
    found = 0.0
    for name, tensor in state.items():
        if name in prunable:
            found += bound_of(tensor, int((tensor != 0).sum()), values)
        else:
            found += whole_bound(tensor, values, bias=name in biases)
    return found


def bound_of(tensor: TensorSpec, kept: int, values: str) -> float:
    """Return a prunable tensor's part of the information bound in bytes.

    Args:
        tensor: its values do not count.
        kept: number of entries that are not zero.
        values: type of the kept values.
    """
    count = tensor.numel()
    places = count * entropy(kept / count) / 8 if count else 0.0
    return places + _width(tensor, values) * kept


def whole_bound(tensor: TensorSpec, values: str, *, bias: bool) -> float:
    """Return the part of a tensor whose zeros do not count; only biases are rounded."""
    width = _width(tensor, BIAS_VALUES[values]) if bias else tensor.element_size()
    return float(tensor.numel() * width)


def _width(tensor: TensorSpec, values: str) -> int:
    """Bytes of one stored value."""
    return min(tensor.element_size(), VALUE_BYTES.get(values, tensor.element_size()))


def dense_bytes(state: Mapping[str, TensorSpec]) -> int:
    """Return the tensors' own size in bytes, floating-point ones counted as fp32."""
    return sum(
        t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in state.values()
    )


def table(
    state: Mapping[str, Tensor],
    prunable: Collection[str],
    written: Collection[tuple[str, int, str]],
) -> list[Size]:
    """Set the sizes of a network side by side: dense, masked, compressed, and the written files.

    Args:
        state: the sparse network.
        prunable: names of the tensors whose zeros count.
        written: name, size in bytes and type of values of files; ``safetensors`` is measured in
            memory where it is not among them.
    """
    from safetensors.torch import save

    plain = save({name: tensor.clone().contiguous() for name, tensor in state.items()})
    dense = dense_bytes(state)
    level = _LEVELS[len(plain) > _THOROUGH]
    rows = [("dense fp32", dense, "fp32")]
    rows += [] if any(n == "safetensors" for n, _, _ in written) else [
        ("safetensors", len(plain), "fp32")
    ]  # fmt: skip
    rows += [row for row in written if row[0] == "safetensors"]
    rows.append((f"safetensors + zstd -{level}", _zstd(plain, level), "fp32"))
    rows += [row for row in written if row[0] != "safetensors"]
    found = []
    for name, size, values in rows:
        least = bound(state, prunable, values)
        found.append(Size(name, size, values, dense / size, size / least if least else None))
    return found


def _zstd(data: bytes, level: int) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=level).compress(data))
