"""How small the file of a sparse network can be, and how small the actual files are.

**The information bound.** To say which of the n weights of a tensor are kept, when only their
number is known, takes n·H(d) bits, where d is the density and H(d) = -d log₂ d - (1-d) log₂(1-d)
(Shannon 1948). The bound adds this up for all prunable tensors, with a fixed number of bytes for
each kept value and each bias, and with all other tensors at their raw size. Metadata is not
counted. A file can be smaller, because values and masks are not random.
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

# The masked file compressed by zstd, for comparison: at the first level up to this many bytes, at
# the second level beyond.
_ZSTD_LIMIT, _ZSTD_LEVELS = 1 << 22, (19, 3)


@dataclass(frozen=True)
class Size:
    """One way to write the network.

    Attributes:
        name: what it is, for people.
        bytes: its measured size.
        values: type of the values in it.
        against_dense: dense fp32 bytes / these bytes.
        against_bound: these bytes / the information bound for this type of values; None where the
            bound is 0, because there are only zeros.
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
    """Return the bits per weight of a mask of a density in [0, 1]: 1 at a half, 0 at both ends."""
    if density <= 0 or density >= 1:
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def bound(state: Mapping[str, Tensor], prunable: Collection[str], values: str) -> float:
    """Return the information bound in bytes.

    Args:
        state: tensors by name; a tensor that occurs twice counts twice.
        prunable: names of the tensors whose zeros count.
        values: type of the kept values: ``fp32`` (each tensor's own type), ``fp16``, ….
    """
    biases = set(bias_names(state, prunable))
    total = 0.0
    for name, tensor in state.items():
        if name in prunable:
            total += bound_of(tensor, int((tensor != 0).sum()), values)
        else:
            total += whole_bound(tensor, values, bias=name in biases)
    return total


def bound_of(tensor: TensorSpec, kept: int, values: str) -> float:
    """Return the contribution of a prunable tensor to the information bound, in bytes.

    Args:
        tensor: only its shape and type matter.
        kept: number of entries that are not zero.
        values: type of the kept values.
    """
    count = tensor.numel()
    mask = count * entropy(kept / count) / 8 if count else 0.0
    return mask + _width(tensor, values) * kept


def whole_bound(tensor: TensorSpec, values: str, *, bias: bool) -> float:
    """Return the contribution of a tensor whose zeros do not count; only biases are rounded."""
    width = _width(tensor, BIAS_VALUES[values]) if bias else tensor.element_size()
    return float(tensor.numel() * width)


def _width(tensor: TensorSpec, values: str) -> int:
    """Return the bytes of one stored value."""
    return min(tensor.element_size(), VALUE_BYTES.get(values, tensor.element_size()))


def dense_bytes(state: Mapping[str, TensorSpec]) -> int:
    """Return the raw size of the tensors in bytes, with floating-point ones counted as fp32."""
    return sum(
        t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in state.values()
    )


def table(
    state: Mapping[str, Tensor],
    prunable: Collection[str],
    written: Collection[tuple[str, int, str]],
) -> list[Size]:
    """Return the sizes of a network: dense, masked, compressed, and those of written files.

    Args:
        state: the sparse network.
        prunable: names of the tensors whose zeros count.
        written: name, size in bytes and type of values of each written file; ``safetensors`` is
            measured in memory where it is not among them.
    """
    from safetensors.torch import save

    masked = save({name: tensor.clone().contiguous() for name, tensor in state.items()})
    dense = dense_bytes(state)
    level = _ZSTD_LEVELS[len(masked) > _ZSTD_LIMIT]
    plain = [row for row in written if row[0] == "safetensors"]
    rows = [
        ("dense fp32", dense, "fp32"),
        *(plain or [("safetensors", len(masked), "fp32")]),
        (f"safetensors + zstd -{level}", _zstd(masked, level), "fp32"),
        *(row for row in written if row[0] != "safetensors"),
    ]
    sizes = []
    for name, size, values in rows:
        least = bound(state, prunable, values)
        sizes.append(Size(name, size, values, dense / size, size / least if least else None))
    return sizes


def _zstd(data: bytes, level: int) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=level).compress(data))
