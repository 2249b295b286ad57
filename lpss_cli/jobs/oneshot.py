"""One-shot global magnitude pruning of a safetensors file that may be larger than memory.

The file is read in blocks: a sample of them to see roughly where the threshold lies, then the whole
file three times, to find the threshold exactly, to write the result, and to compare the result with
the source. Neither the network nor any data are needed; what counts as prunable follows from names
and shapes.
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

from lpss_cli.checkpoints.read_file import open_regular
from lpss_cli.checkpoints.safetensors_file import read_header
from lpss_cli.distributed import launch
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request
from lpss_cli.sparsity.patterns import is_weight_name, resolve_patterns
from lpss_cli.sparsity.targets import check_sparsity, zero_count
from lpss_cli.training.method import all_options
from lpss_cli.training.options import SPARSITY
from lpss_cli.utils.files import atomic_write, check_space, reserve_output

#: Entries of a block, whose temporaries should stay in the cache.
BLOCK_SIZE = 1 << 20
#: safetensors dtypes that are pruned, as NumPy's.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
#: Magnitudes as whole numbers: the bits of a float32 without its sign.
Keys = NDArray[np.uint32]
# Low bits of a key that the histogram of keys leaves out.
_LOW_BITS = 15
# Blocks in the sample that is read first, and the fraction of all entries by which the rank of the
# threshold in it may be wrong.
_SAMPLED_BLOCKS, _MARGIN = 64, 0.01
_INFINITY_KEY = 0x7F800000
# Tensors that a note names when they stay as they are; the result has all of them.
_MAX_NAMES = 5


@dataclass(frozen=True)
class OneShotResult:
    """The result of one-shot pruning.

    Attributes:
        path: the file that was written, read back and compared.
        parts: the tensors that were pruned.
        left: names of the tensors that were copied unchanged.
        threshold: smallest magnitude that was kept.
        bytes: size of the file in bytes.
        seconds: wall time in seconds.
    """

    path: str
    parts: tuple[PrunedTensor, ...]
    left: tuple[str, ...]
    threshold: float
    bytes: int
    seconds: float

    @property
    def weights(self) -> int:
        """Number of weights in the pruned tensors."""
        return sum(part.weights for part in self.parts)

    @property
    def zeros(self) -> int:
        """Number of zeros among them."""
        return sum(part.zeros for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(self), "weights": self.weights, "zeros": self.zeros}


@dataclass(frozen=True)
class PrunedTensor:
    """A pruned tensor: its name, number of entries, and number of zeros."""

    name: str
    weights: int
    zeros: int


def applies(path: Path, request: Request) -> bool:
    """Return whether a request is to prune a bare file: no epochs, no network, no data.

    Args:
        path: a safetensors file that no lpss run has written, or any other file.
        request: what was asked for.
    """
    named = request.arch is not None or request.data is not None
    return request.epochs == 0 and not named and _is_bare(path)


def prune_file(path: Path, request: Request, callback: JobCallback) -> OneShotResult:
    """Prune a bare file as a request asks for; see :func:`prune_tensors`.

    Args:
        path: the safetensors file.
        request: sparsity (default 0.9), weights to skip, and output (default: beside the file).
        callback: told which tensors stay as they are.

    Raises:
        InputError: an option asks for training, several processes were started, or the file cannot
            be pruned.
        RunError: see :func:`prune_tensors`.
    """
    _refuse_training(request)
    launch.refuse("one-shot pruning of a bare file")
    sparsity = SPARSITY if request.sparsity is None else request.sparsity
    out = request.out or path.with_name(f"{path.stem}.sparse.safetensors")
    with callback.busy("pruning"):
        result = prune_tensors(path, out, sparsity, request.skip, force=request.force)
    if result.left:
        more = len(result.left) - _MAX_NAMES
        rest = f" and {more:,} more" if more > 0 else ""
        callback.on_note(f"left as they are: {', '.join(result.left[:_MAX_NAMES])}{rest}")
    return result


def _refuse_training(request: Request) -> None:
    """Refuse options that have no meaning in one-shot magnitude pruning."""
    options = {k: v for k, v in request.options.items() if (k, v) != ("ranking", "magnitude")}
    given = {
        "--method": request.method not in (None, "gmp", "dense"),
        "--layer": bool(request.layers),
        "--distill": request.distill is not None,
        "--target-drop": request.target_drop is not None,
        **{all_options()[key].flag: True for key in options},
    }
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong:
        raise InputError(
            "one-shot pruning of a bare file ranks by magnitude and trains nothing",
            f"leave out {', '.join(wrong)}, or pass --arch and --data",
        )


def _is_bare(path: Path) -> bool:
    """Return whether a file is a safetensors file that no lpss run has written."""
    try:
        with open_regular(path) as file:
            if file.read(9)[8:] != b"{":
                return False
            _, _, texts = read_header(path, file)
    except (InputError, OSError):
        return False  # reading it for training will say what is wrong
    return "lpss" not in texts


def prune_tensors(
    path: Path, out: Path, sparsity: float, skip: Sequence[str] = (), *, force: bool = False
) -> OneShotResult:
    """Set the smallest weights of a file to zero, exactly ``round(sparsity·N)`` of them.

    All floating-point tensors of two or more dimensions are ranked together, except those whose
    names are of embeddings, normalization layers, tokens or positions. Among equal magnitudes, the
    later ones are pruned first.

    Args:
        path: a safetensors file; only blocks of it are held in memory.
        out: the safetensors file to write.
        sparsity: fraction of zeros among the weights, in [0, 1).
        skip: globs on names of tensors that stay as they are.
        force: replace ``out`` if it exists.

    Raises:
        InputError: the file cannot be read, holds values that are not finite, or has no prunable
            tensor.
        RunError: the written file differs from what was computed; it is not kept.
    """
    began = time.perf_counter()
    check_sparsity(sparsity)
    plan = _plan(path, skip)
    total = sum(tensor.count for tensor in plan.prunable)
    check_sparsity(sparsity, total)
    wanted = zero_count(total, sparsity)
    with reserve_output(out, force=force), open_regular(path) as source:
        check_space(out, path.stat().st_size)
        threshold = find_threshold(path, source, plan.prunable, wanted)
        parts = _write_result(source, plan, threshold, sparsity, out)
        zeros = sum(part.zeros for part in parts)
        if zeros < wanted:
            out.unlink()
            raise RunError(f"{out} has {zeros:,} zeros, not {wanted:,}", "please report it")
    left = tuple(tensor.name for tensor in plan.tensors if tensor.name not in plan.chosen)
    smallest = float(np.array([threshold.key], np.uint32).view(np.float32)[0])
    size = out.stat().st_size
    return OneShotResult(str(out), parts, left, smallest, size, time.perf_counter() - began)


@dataclass(frozen=True)
class _Plan:
    """A file, and which of its tensors are to be pruned.

    Attributes:
        header, start, texts: see :func:`read_header`.
        tensors: all tensors, in the order of their positions.
        chosen: names of those to prune.
    """

    header: dict[str, Any]
    start: int
    texts: dict[str, str]
    tensors: list[TensorEntry]
    chosen: set[str]

    @property
    def prunable(self) -> list[TensorEntry]:
        """The tensors to prune."""
        return [tensor for tensor in self.tensors if tensor.name in self.chosen]


def _plan(path: Path, skip: Sequence[str]) -> _Plan:
    with open_regular(path) as file:
        header, start, texts = read_header(path, file)
    tensors = [
        TensorEntry(name, entry["dtype"], start + entry["data_offsets"][0], prod(entry["shape"]))
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    ]
    candidates = [t.name for t in tensors if _prunable(t, header[t.name]["shape"])]
    skipped = resolve_patterns(tuple(skip), candidates, "--skip")
    return _Plan(header, start, texts, tensors, set(candidates) - set(skipped))


def _prunable(tensor: TensorEntry, shape: Sequence[int]) -> bool:
    return tensor.dtype in DTYPES and len(shape) >= 2 and is_weight_name(tensor.name)


@dataclass(frozen=True)
class Threshold:
    """Entries below ``key`` are pruned, and those that equal it except the first ``ties``."""

    key: int
    ties: int


def find_threshold(
    path: Path, source: BinaryIO, pruned: Sequence[TensorEntry], wanted: int
) -> Threshold:
    """Return the threshold that makes ``wanted`` zeros, exactly.

    Raises:
        InputError: a value is not finite, or the file ends early.
    """
    number = sum(tensor.blocks for tensor in pruned)
    # A sample of the blocks gives a bracket around the threshold; if it lies outside, all of them.
    for stride, margin in ((max(1, number // _SAMPLED_BLOCKS), _MARGIN), (1, 0.0)):
        low, high = _bracket_threshold(source, pruned, wanted, stride, margin)
        below, inside = _collect_keys(path, source, pruned, low, high)
        if wanted == 0:
            return Threshold(0, 0)
        rank = wanted - below
        if 0 < rank <= len(inside):
            break
    key = int(np.partition(inside, rank - 1)[rank - 1])
    # Of the entries that equal the threshold, the first ones are kept.
    return Threshold(key, int(np.count_nonzero(inside <= key)) - rank)


def _bracket_threshold(
    source: BinaryIO, pruned: Sequence[TensorEntry], wanted: int, stride: int, margin: float
) -> tuple[int, int]:
    """Return keys between which the threshold should lie, from a histogram of the high bits.

    Args:
        source: the file.
        pruned: the tensors to prune.
        wanted: number of zeros.
        stride: one block out of so many is read.
        margin: fraction of all entries by which the bracket is wider on both sides.
    """
    counts = np.zeros(1 << (32 - _LOW_BITS), np.int64)
    number = 0
    for tensor in pruned:
        for block in read_blocks(source, tensor, every=stride, first=-number % stride):
            counts += np.bincount(
                magnitude_keys(block) >> np.uint32(_LOW_BITS), minlength=len(counts)
            )
        number += tensor.blocks
    below = np.cumsum(counts)
    total = sum(tensor.count for tensor in pruned)
    share = wanted / total if total else 0.0
    ends = (np.clip(share + side * margin, 0, 1) * below[-1] for side in (-1, 1))
    if margin == 0.0:
        ends = (wanted for _ in range(2))
    low, high = (int(np.searchsorted(below, end)) for end in ends)
    return low << _LOW_BITS, (min(high, len(counts) - 1) + 1) << _LOW_BITS


def _collect_keys(
    path: Path, source: BinaryIO, pruned: Sequence[TensorEntry], low: int, high: int
) -> tuple[int, Keys]:
    """Count the keys below ``low`` and collect those in [low, high)."""
    below, found = 0, [np.zeros(0, np.uint32)]
    for tensor in pruned:
        bad = 0
        for block in read_blocks(source, tensor):
            keys = magnitude_keys(block)
            bad += int(np.count_nonzero(keys >= _INFINITY_KEY))
            below += int(np.count_nonzero(keys < low))
            found.append(keys[(keys >= low) & (keys < high)])
        if bad:
            raise InputError(
                f"{path}: {tensor.name} holds {bad} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )
    return below, np.concatenate(found)


def _write_result(
    source: BinaryIO, plan: _Plan, threshold: Threshold, sparsity: float, out: Path
) -> tuple[PrunedTensor, ...]:
    """Write the result, compare it with the source, and move it into place."""
    facts = {
        "method": "magnitude, one cut",
        "sparsity": sparsity,
        "weights": {tensor.name: {"row_dim": 0} for tensor in plan.prunable},
    }
    head = _header_bytes(plan.header, {**plan.texts, "lpss": json.dumps(facts)})
    with atomic_write(out) as temporary:
        _write_pruned(source, plan.tensors, plan.chosen, threshold, head, temporary)
        shift = len(head) - plan.start
        return _compare(source, plan.tensors, plan.chosen, threshold, temporary, shift)


def _header_bytes(header: dict[str, Any], texts: dict[str, str]) -> bytes:
    """Return the header of a safetensors file with these entries and metadata, length included."""
    content = json.dumps({"__metadata__": texts, **header}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _write_pruned(
    source: BinaryIO,
    tensors: Sequence[TensorEntry],
    chosen: set[str],
    threshold: Threshold,
    head: bytes,
    to: Path,
) -> None:
    """Copy the file block by block, with zeros in place of the pruned weights."""
    ties = threshold.ties
    ends = [*(tensor.begin for tensor in tensors[1:]), source.seek(0, 2)]
    with to.open("wb") as file:
        file.write(head)
        for tensor, end in zip(tensors, ends, strict=True):
            if tensor.name not in chosen:
                source.seek(tensor.begin)
                _copy(source, file, end - tensor.begin)
                continue
            for block in read_blocks(source, tensor):
                keys = magnitude_keys(block)
                kept = keys > threshold.key
                same = np.flatnonzero(keys == threshold.key)[:ties] if threshold.key else keys[:0]
                kept[same] = True
                ties -= len(same)
                file.write(np.where(kept, block, block.dtype.type(0)).tobytes())


def _compare(
    source: BinaryIO,
    tensors: Sequence[TensorEntry],
    chosen: set[str],
    threshold: Threshold,
    written: Path,
    shift: int,
) -> tuple[PrunedTensor, ...]:
    """Read the result back: kept weights bit for bit, zeros only where the threshold puts them.

    Raises:
        RunError: the result differs.
    """
    parts, same = [], True
    with open_regular(written) as file:
        header, _, _ = read_header(written, file)
        for tensor in tensors:
            if tensor.name not in chosen:
                size = header[tensor.name]["data_offsets"]
                same &= _equal_bytes(source, file, tensor.begin, shift, size[1] - size[0])
                continue
            zeros = 0
            pairs = zip(read_blocks(source, tensor), read_blocks(file, tensor, shift), strict=True)
            for before, after in pairs:
                bits = "<u4" if before.itemsize == 4 else "<u2"
                a, b = before.view(bits), after.view(bits)
                gone = b == 0
                zeros += int(np.count_nonzero(gone))
                same &= bool(np.all((a == b) | gone))
                same &= bool(np.all(magnitude_keys(before)[gone] <= threshold.key))
            parts.append(PrunedTensor(tensor.name, tensor.count, zeros))
    if not same:
        raise RunError(f"{written} reads back differently", "no file was left; check the disk")
    return tuple(parts)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its name, dtype, position and number of entries."""

    name: str
    dtype: str
    begin: int  # offset in the file, in bytes
    count: int

    @property
    def blocks(self) -> int:
        """Number of blocks in which it is read."""
        return -(-self.count // BLOCK_SIZE)


def read_blocks(
    file: BinaryIO, tensor: TensorEntry, shift: int = 0, *, every: int = 1, first: int = 0
) -> Iterator[NDArray[Any]]:
    """Yield the blocks of a tensor whose dtype is in ``DTYPES``.

    Args:
        file: the file.
        tensor: the tensor, by its position in the source.
        shift: bytes by which it lies later in this file.
        every: read one block out of so many.
        first: number of the first block to read.

    Raises:
        InputError: the file ends before the tensor does.
    """
    dtype = DTYPES[tensor.dtype]
    for begin in range(first * BLOCK_SIZE, tensor.count, every * BLOCK_SIZE):
        count = min(BLOCK_SIZE, tensor.count - begin)
        file.seek(tensor.begin + shift + begin * dtype.itemsize)
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        yield np.frombuffer(data, dtype)


def magnitude_keys(block: NDArray[Any]) -> Keys:
    """Return whole numbers in the order of the magnitudes: float32 bits without the sign."""
    if block.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        keys: Keys = (block & np.uint16(0x7FFF)).astype(np.uint32) << np.uint32(16)
    else:
        keys = block.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return keys


def _copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    """Copy ``count`` bytes from the position of ``source``.

    Raises:
        InputError: the file has fewer.
    """
    while count:
        data = source.read(min(count, 4 * BLOCK_SIZE))
        if not data:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        to.write(data)
        count -= len(data)


def _equal_bytes(a: BinaryIO, b: BinaryIO, begin: int, shift: int, count: int) -> bool:
    """Return whether ``count`` bytes are the same in two files, ``shift`` bytes later in ``b``."""
    a.seek(begin)
    b.seek(begin + shift)
    sizes = (min(left, 4 * BLOCK_SIZE) for left in range(count, 0, -4 * BLOCK_SIZE))
    return all(a.read(size) == b.read(size) for size in sizes)
