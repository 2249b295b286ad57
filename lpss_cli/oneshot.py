"""One global magnitude cut of a safetensors file that may be larger than memory.

The file is read in blocks: parts of it to see roughly where the threshold lies, then three times to
find it exactly, to write the result, and to compare it with the source. Neither
the network nor any data are needed; what counts as prunable is guessed from names and shapes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lpss_cli.errors import InputError, RunError, one_line
from lpss_cli.files import check_space, output, replacing
from lpss_cli.patterns import resolve, speaks_of_weights
from lpss_cli.safetensorsfile import check_header
from lpss_cli.targets import check_sparsity, zero_count

# Entries of a block, whose temporaries should stay in the cache.
_BLOCK = 1 << 20
_LOW = 15  # bits of a magnitude that the first count leaves out
# Blocks that the first count looks at, and the share of entries that it may be wrong by.
_SAMPLED, _MARGIN = 64, 0.01
#: safetensors dtypes that are cut, as NumPy's.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_INFINITE = 0x7F800000

Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class Part:
    """A tensor that was cut: its name, number of entries, and zeros afterwards."""

    name: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class Cut:
    """What a cut gave.

    Attributes:
        path: the file that was written, read back and compared.
        parts: the tensors that were cut.
        left: names of the tensors that were copied as they are.
        threshold: the smallest magnitude that was kept.
        bytes: size of the file.
        seconds: wall time.
    """

    path: str
    parts: tuple[Part, ...]
    left: tuple[str, ...]
    threshold: float
    bytes: int
    seconds: float

    @property
    def weights(self) -> int:
        """Entries of all tensors that were cut."""
        return sum(part.weights for part in self.parts)

    @property
    def zeros(self) -> int:
        """Zeros among them."""
        return sum(part.zeros for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(self), "weights": self.weights, "zeros": self.zeros}


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    begin: int  # in the file
    count: int


def suits(path: Path) -> bool:
    """Whether a file is a safetensors file that no lpss run has written."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] != b"{":
            return False
        _, _, texts = _read_header(path)
    except (InputError, OSError):
        return False  # the ordinary way says what is wrong with it
    return "lpss" not in texts


def cut(
    path: Path, out: Path, sparsity: float, skip: Sequence[str] = (), *, force: bool = False
) -> Cut:
    """Zero the smallest weights of a file, exactly ``round(sparsity·N)`` of them.

    All floating-point tensors of two or more dimensions whose names do not speak of embeddings,
    norms, tokens or positions compare together. Of equal magnitudes the later ones go first.

    Args:
        path: a safetensors file; only blocks of it are in memory.
        out: the safetensors file to write.
        sparsity: zeros / weights, in [0, 1).
        skip: globs on names of tensors to leave as they are.
        force: ``out`` may exist.

    Raises:
        InputError: the file cannot be read, holds NaN, or has nothing to cut.
        RunError: what was written is not what was meant; there is no file then.
    """
    began = time.perf_counter()
    check_sparsity(sparsity)
    header, start, texts = _read_header(path)
    tensors = [
        _Tensor(name, entry["dtype"], start + entry["data_offsets"][0], prod(entry["shape"]))
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    ]
    candidates = [t.name for t in tensors if _prunable(t, header[t.name]["shape"])]
    skipped = resolve(tuple(skip), candidates, "--skip")
    chosen = {name for name in candidates if name not in skipped}
    pruned = [tensor for tensor in tensors if tensor.name in chosen]
    total = sum(tensor.count for tensor in pruned)
    check_sparsity(sparsity, total)
    with output(out, force=force), path.open("rb") as source:
        check_space(out, path.stat().st_size)
        wanted = zero_count(total, sparsity)
        threshold, ties = _threshold(path, source, pruned, wanted)
        facts = {
            "method": "magnitude, one cut",
            "sparsity": sparsity,
            "weights": {tensor.name: {"row_dim": 0} for tensor in pruned},
        }
        head = _header(header, {**texts, "lpss": json.dumps(facts)})
        try:
            with replacing(out) as temporary:
                _write(source, tensors, chosen, threshold, ties, head, temporary)
                shift = len(head) - start
                parts = _compare(source, tensors, chosen, threshold, temporary, shift)
        except OSError as error:
            raise InputError(
                f"cannot write {out}: {one_line(error)}", "check space and permissions"
            ) from error
        zeros = sum(part.zeros for part in parts)
        if zeros < wanted:
            out.unlink()
            raise RunError(f"{out} has {zeros:,} zeros, not {wanted:,}", "please report it")
    left = tuple(tensor.name for tensor in tensors if tensor.name not in chosen)
    smallest = float(np.array([threshold], np.uint32).view(np.float32)[0])
    size = out.stat().st_size
    return Cut(str(out), parts, left, smallest, size, time.perf_counter() - began)


def _read_header(path: Path) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the entries, the place of the data, and the metadata of a file."""
    try:
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            head = first + file.read(min(length, 1 << 25))
        header, texts = check_header(head, path.stat().st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is a damaged safetensors file: {one_line(error)[:200]}",
            "make it again, or take another copy",
        ) from None
    return header, 8 + length, texts


def _prunable(tensor: _Tensor, shape: Sequence[int]) -> bool:
    return tensor.dtype in _DTYPES and len(shape) >= 2 and speaks_of_weights(tensor.name)


def _blocks(
    file: BinaryIO, tensor: _Tensor, shift: int = 0, *, every: int = 1, first: int = 0
) -> Iterator[NDArray[Any]]:
    """Read a tensor of a known dtype in blocks.

    ``shift`` is how much later it lies; of ``every`` so many blocks one is read.
    """
    dtype = _DTYPES[tensor.dtype]
    for begin in range(first * _BLOCK, tensor.count, every * _BLOCK):
        count = min(_BLOCK, tensor.count - begin)
        file.seek(tensor.begin + shift + begin * dtype.itemsize)
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        yield np.frombuffer(data, dtype)


def _keys(block: NDArray[Any]) -> Keys:
    """Return whole numbers that are ordered as the magnitudes: float32 bits without the sign."""
    if block.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        keys: Keys = (block & np.uint16(0x7FFF)).astype(np.uint32) << np.uint32(16)
    else:
        keys = block.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return keys


def _threshold(
    path: Path, source: BinaryIO, pruned: Sequence[_Tensor], wanted: int
) -> tuple[int, int]:
    """Find what to cut: all keys below the threshold; and how many that equal it are kept."""
    blocks = sum(-(-tensor.count // _BLOCK) for tensor in pruned)
    # A part of the file tells roughly where the threshold lies; all of it, exactly.
    for stride, margin in ((max(1, blocks // _SAMPLED), _MARGIN), (1, 0.0)):
        low, high = _bracket(source, pruned, wanted, stride, margin)
        below, inside = _within(path, source, pruned, low, high)
        if wanted == 0:
            return 0, 0
        rank = wanted - below
        if 0 < rank <= len(inside):
            break
    threshold = int(np.partition(inside, rank - 1)[rank - 1])
    # Of the entries that equal the threshold the first are kept.
    return threshold, int(np.count_nonzero(inside <= threshold)) - rank


def _bracket(
    source: BinaryIO, pruned: Sequence[_Tensor], wanted: int, stride: int, margin: float
) -> tuple[int, int]:
    """Return keys between which the threshold should lie, from a count by high bits.

    Args:
        source: the file.
        pruned: the tensors to cut.
        wanted: number of zeros.
        stride: of so many blocks one is looked at.
        margin: the part of all entries that the bracket is wider to both sides.
    """
    counts = np.zeros(1 << (32 - _LOW), np.int64)
    number = 0
    for tensor in pruned:
        for block in _blocks(source, tensor, every=stride, first=-number % stride):
            counts += np.bincount(_keys(block) >> np.uint32(_LOW), minlength=len(counts))
        number += -(-tensor.count // _BLOCK)
    below = np.cumsum(counts)
    total = sum(tensor.count for tensor in pruned)
    share = wanted / total if total else 0.0
    ends = (np.clip(share + side * margin, 0, 1) * below[-1] for side in (-1, 1))
    if margin == 0.0:
        ends = (wanted for _ in range(2))
    low, high = (int(np.searchsorted(below, end)) for end in ends)
    return low << _LOW, (min(high, len(counts) - 1) + 1) << _LOW


def _within(
    path: Path, source: BinaryIO, pruned: Sequence[_Tensor], low: int, high: int
) -> tuple[int, Keys]:
    """Count the keys below ``low`` and collect those in [low, high)."""
    below, found = 0, [np.zeros(0, np.uint32)]
    for tensor in pruned:
        bad = 0
        for block in _blocks(source, tensor):
            keys = _keys(block)
            bad += int(np.count_nonzero(keys >= _INFINITE))
            below += int(np.count_nonzero(keys < low))
            found.append(keys[(keys >= low) & (keys < high)])
        if bad:
            raise InputError(
                f"{path}: {tensor.name} holds {bad} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )
    return below, np.concatenate(found)


def _header(header: dict[str, Any], texts: dict[str, str]) -> bytes:
    content = json.dumps({"__metadata__": texts, **header}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _write(
    source: BinaryIO,
    tensors: Sequence[_Tensor],
    chosen: set[str],
    threshold: int,
    ties: int,
    head: bytes,
    to: Path,
) -> None:
    """Copy the file block by block, with zeros for what goes."""
    ends = [*(tensor.begin for tensor in tensors[1:]), source.seek(0, 2)]
    with to.open("wb") as file:
        file.write(head)
        for tensor, end in zip(tensors, ends, strict=True):
            if tensor.name not in chosen:
                source.seek(tensor.begin)
                _copy(source, file, end - tensor.begin)
                continue
            for block in _blocks(source, tensor):
                keys = _keys(block)
                kept = keys > threshold
                equal = np.flatnonzero(keys == threshold)[:ties] if threshold else keys[:0]
                kept[equal] = True
                ties -= len(equal)
                file.write(np.where(kept, block, block.dtype.type(0)).tobytes())


def _copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, 4 * _BLOCK))
        if not data:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        to.write(data)
        count -= len(data)


def _compare(
    source: BinaryIO,
    tensors: Sequence[_Tensor],
    chosen: set[str],
    threshold: int,
    written: Path,
    shift: int,
) -> tuple[Part, ...]:
    """Read the result back: kept weights bit for bit, zeros only where they belong."""
    parts, same = [], True
    header, _, _ = _read_header(written)
    with written.open("rb") as file:
        for tensor in tensors:
            if tensor.name not in chosen:
                size = header[tensor.name]["data_offsets"]
                same &= _equal(source, file, tensor.begin, shift, size[1] - size[0])
                continue
            zeros = 0
            pairs = zip(_blocks(source, tensor), _blocks(file, tensor, shift), strict=True)
            for before, after in pairs:
                bits = "<u4" if before.itemsize == 4 else "<u2"
                a, b = before.view(bits), after.view(bits)
                gone = b == 0
                zeros += int(np.count_nonzero(gone))
                same &= bool(np.all((a == b) | gone))
                same &= bool(np.all(_keys(before)[gone] <= threshold))
            parts.append(Part(tensor.name, tensor.count, zeros))
    if not same:
        raise RunError(f"{written} reads back differently", "no file was left; check the disk")
    return tuple(parts)


def _equal(a: BinaryIO, b: BinaryIO, begin: int, shift: int, count: int) -> bool:
    a.seek(begin)
    b.seek(begin + shift)
    sizes = (min(left, 4 * _BLOCK) for left in range(count, 0, -4 * _BLOCK))
    return all(a.read(size) == b.read(size) for size in sizes)
