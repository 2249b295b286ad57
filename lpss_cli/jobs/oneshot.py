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

# MERGED: The tensors of a file, read block by block, and their magnitudes as whole numbers.
#: Entries of a block, whose temporaries should stay in the cache.
SIZE = 1 << 20
#: safetensors dtypes that are cut, as NumPy's.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its name, dtype, place and number of entries."""

    name: str
    dtype: str
    begin: int  # in the file
    count: int

    @property
    def blocks(self) -> int:
        """Number of blocks it is read in."""
        return -(-self.count // SIZE)


def blocks(
    file: BinaryIO, tensor: Entry, shift: int = 0, *, every: int = 1, first: int = 0
) -> Iterator[NDArray[Any]]:
    """Read a tensor of a known dtype in blocks.

    ``shift`` is how much later it lies; of ``every`` so many blocks one is read, from ``first`` on.

    Raises:
        InputError: the file ends before it.
    """
    dtype = DTYPES[tensor.dtype]
    for begin in range(first * SIZE, tensor.count, every * SIZE):
        count = min(SIZE, tensor.count - begin)
        file.seek(tensor.begin + shift + begin * dtype.itemsize)
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        yield np.frombuffer(data, dtype)


def keys_of(block: NDArray[Any]) -> Keys:
    """Return whole numbers that are ordered as the magnitudes: float32 bits without the sign."""
    if block.dtype == np.dtype("<u2"):  # bfloat16: the upper half of a float32
        keys: Keys = (block & np.uint16(0x7FFF)).astype(np.uint32) << np.uint32(16)
    else:
        keys = block.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return keys


def copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    """Copy so many bytes from where ``source`` stands.

    Raises:
        InputError: there are fewer.
    """
    while count:
        data = source.read(min(count, 4 * SIZE))
        if not data:
            raise InputError("the file became shorter while it was read", "wait, and try again")
        to.write(data)
        count -= len(data)


def equal(a: BinaryIO, b: BinaryIO, begin: int, shift: int, count: int) -> bool:
    """Whether so many bytes are the same in two files; in ``b`` they lie ``shift`` later."""
    a.seek(begin)
    b.seek(begin + shift)
    sizes = (min(left, 4 * SIZE) for left in range(count, 0, -4 * SIZE))
    return all(a.read(size) == b.read(size) for size in sizes)


# MERGED: The result of a cut: written block by block, and read back against the source.
@dataclass(frozen=True)
class Part:
    """A tensor that was cut: its name, number of entries, and zeros afterwards."""

    name: str
    weights: int
    zeros: int


def header_of(header: dict[str, Any], texts: dict[str, str]) -> bytes:
    """Return the first bytes of a file with these entries and metadata."""
    content = json.dumps({"__metadata__": texts, **header}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def write_parts(
    source: BinaryIO,
    tensors: Sequence[Entry],
    chosen: set[str],
    threshold: Threshold,
    head: bytes,
    to: Path,
) -> None:
    """Copy the file block by block, with zeros for what goes."""
    ties = threshold.ties
    ends = [*(tensor.begin for tensor in tensors[1:]), source.seek(0, 2)]
    with to.open("wb") as file:
        file.write(head)
        for tensor, end in zip(tensors, ends, strict=True):
            if tensor.name not in chosen:
                source.seek(tensor.begin)
                copy(source, file, end - tensor.begin)
                continue
            for block in blocks(source, tensor):
                keys = keys_of(block)
                kept = keys > threshold.key
                same = np.flatnonzero(keys == threshold.key)[:ties] if threshold.key else keys[:0]
                kept[same] = True
                ties -= len(same)
                file.write(np.where(kept, block, block.dtype.type(0)).tobytes())


def compare_parts(
    source: BinaryIO,
    tensors: Sequence[Entry],
    chosen: set[str],
    threshold: Threshold,
    written: Path,
    shift: int,
) -> tuple[Part, ...]:
    """Read the result back: kept weights bit for bit, zeros only where they belong.

    Raises:
        RunError: it is something else.
    """
    parts, same = [], True
    with open_regular(written) as file:
        header, _, _ = read_header(written, file)
        for tensor in tensors:
            if tensor.name not in chosen:
                size = header[tensor.name]["data_offsets"]
                same &= equal(source, file, tensor.begin, shift, size[1] - size[0])
                continue
            zeros = 0
            pairs = zip(blocks(source, tensor), blocks(file, tensor, shift), strict=True)
            for before, after in pairs:
                bits = "<u4" if before.itemsize == 4 else "<u2"
                a, b = before.view(bits), after.view(bits)
                gone = b == 0
                zeros += int(np.count_nonzero(gone))
                same &= bool(np.all((a == b) | gone))
                same &= bool(np.all(keys_of(before)[gone] <= threshold.key))
            parts.append(Part(tensor.name, tensor.count, zeros))
    if not same:
        raise RunError(f"{written} reads back differently", "no file was left; check the disk")
    return tuple(parts)


# MERGED: Where a cut lies: the exact rank among all entries of a file, in three readings at most.
_LOW = 15  # bits of a magnitude that the first count leaves out
# Blocks that the first count looks at, and the share of entries that it may be wrong by.
_SAMPLED, _MARGIN = 64, 0.01
_INFINITE = 0x7F800000
# Tensors that a note names when they are left alone; the result has all of them.
_NAMED = 5


@dataclass(frozen=True)
class Threshold:
    """What goes: all entries whose key is below ``key``, and those that equal it but ``ties``."""

    key: int
    ties: int


def find_threshold(path: Path, source: BinaryIO, pruned: Sequence[Entry], wanted: int) -> Threshold:
    """Find the threshold that makes ``wanted`` zeros.

    Raises:
        InputError: a value is not finite, or the file ends early.
    """
    number = sum(tensor.blocks for tensor in pruned)
    # A part of the file tells roughly where the threshold lies; all of it, exactly.
    for stride, margin in ((max(1, number // _SAMPLED), _MARGIN), (1, 0.0)):
        low, high = _bracket(source, pruned, wanted, stride, margin)
        below, inside = _within(path, source, pruned, low, high)
        if wanted == 0:
            return Threshold(0, 0)
        rank = wanted - below
        if 0 < rank <= len(inside):
            break
    key = int(np.partition(inside, rank - 1)[rank - 1])
    # Of the entries that equal the threshold the first are kept.
    return Threshold(key, int(np.count_nonzero(inside <= key)) - rank)


def _bracket(
    source: BinaryIO, pruned: Sequence[Entry], wanted: int, stride: int, margin: float
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
        for block in blocks(source, tensor, every=stride, first=-number % stride):
            counts += np.bincount(keys_of(block) >> np.uint32(_LOW), minlength=len(counts))
        number += tensor.blocks
    below = np.cumsum(counts)
    total = sum(tensor.count for tensor in pruned)
    share = wanted / total if total else 0.0
    ends = (np.clip(share + side * margin, 0, 1) * below[-1] for side in (-1, 1))
    if margin == 0.0:
        ends = (wanted for _ in range(2))
    low, high = (int(np.searchsorted(below, end)) for end in ends)
    return low << _LOW, (min(high, len(counts) - 1) + 1) << _LOW


def _within(
    path: Path, source: BinaryIO, pruned: Sequence[Entry], low: int, high: int
) -> tuple[int, Keys]:
    """Count the keys below ``low`` and collect those in [low, high)."""
    below, found = 0, [np.zeros(0, np.uint32)]
    for tensor in pruned:
        bad = 0
        for block in blocks(source, tensor):
            keys = keys_of(block)
            bad += int(np.count_nonzero(keys >= _INFINITE))
            below += int(np.count_nonzero(keys < low))
            found.append(keys[(keys >= low) & (keys < high)])
        if bad:
            raise InputError(
                f"{path}: {tensor.name} holds {bad} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )
    return below, np.concatenate(found)


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
class _Plan:
    """A file, and what of it is to be cut.

    Attributes:
        header, start, texts: see :func:`read_header`.
        tensors: all tensors, in the order of their places.
        chosen: names of those to cut.
    """

    header: dict[str, Any]
    start: int
    texts: dict[str, str]
    tensors: list[Entry]
    chosen: set[str]

    @property
    def pruned(self) -> list[Entry]:
        """The tensors to cut."""
        return [tensor for tensor in self.tensors if tensor.name in self.chosen]


def applies(path: Path, request: Request) -> bool:
    """Whether a request is to prune a bare file once: no epochs, no network, no data.

    Args:
        path: A safetensors file that no lpss run has written, or any other file.
        request: What was asked for.
    """
    named = request.arch is not None or request.data is not None
    return request.epochs == 0 and not named and _is_bare(path)


def prune_file(path: Path, request: Request, callback: JobCallback) -> Cut:
    """Prune a bare file as a request asks for; see ``cut``.

    Args:
        path: The safetensors file.
        request: Sparsity, weights to skip and output; None: 0.9, and beside the file.
        callback: Told which tensors are left as they are.

    Raises:
        InputError: An option asks for a training, several processes were started, or ``cut``
            refuses the file.
        RunError: See ``cut``.
    """
    _refuse_training(request)
    launch.refuse("one-shot pruning of a bare file")
    sparsity = SPARSITY if request.sparsity is None else request.sparsity
    out = request.out or path.with_name(f"{path.stem}.sparse.safetensors")
    with callback.busy("pruning"):
        result = cut(path, out, sparsity, request.skip, force=request.force)
    if result.left:
        more = len(result.left) - _NAMED
        rest = f" and {more:,} more" if more > 0 else ""
        callback.on_note(f"left as they are: {', '.join(result.left[:_NAMED])}{rest}")
    return result


def _refuse_training(request: Request) -> None:
    """Refuse options that mean nothing when a file is pruned once, by magnitude."""
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
    """Whether a file is a safetensors file that no lpss run has written."""
    try:
        with open_regular(path) as file:
            if file.read(9)[8:] != b"{":
                return False
            _, _, texts = read_header(path, file)
    except (InputError, OSError):
        return False  # training says what is wrong with it
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
    plan = _plan(path, skip)
    total = sum(tensor.count for tensor in plan.pruned)
    check_sparsity(sparsity, total)
    wanted = zero_count(total, sparsity)
    with reserve_output(out, force=force), open_regular(path) as source:
        check_space(out, path.stat().st_size)
        threshold = find_threshold(path, source, plan.pruned, wanted)
        parts = _rewrite(source, plan, threshold, sparsity, out)
        zeros = sum(part.zeros for part in parts)
        if zeros < wanted:
            out.unlink()
            raise RunError(f"{out} has {zeros:,} zeros, not {wanted:,}", "please report it")
    left = tuple(tensor.name for tensor in plan.tensors if tensor.name not in plan.chosen)
    smallest = float(np.array([threshold.key], np.uint32).view(np.float32)[0])
    size = out.stat().st_size
    return Cut(str(out), parts, left, smallest, size, time.perf_counter() - began)


def _plan(path: Path, skip: Sequence[str]) -> _Plan:
    with open_regular(path) as file:
        header, start, texts = read_header(path, file)
    tensors = [
        Entry(name, entry["dtype"], start + entry["data_offsets"][0], prod(entry["shape"]))
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    ]
    candidates = [t.name for t in tensors if _prunable(t, header[t.name]["shape"])]
    skipped = resolve_patterns(tuple(skip), candidates, "--skip")
    return _Plan(header, start, texts, tensors, set(candidates) - set(skipped))


def _prunable(tensor: Entry, shape: Sequence[int]) -> bool:
    return tensor.dtype in DTYPES and len(shape) >= 2 and is_weight_name(tensor.name)


def _rewrite(
    source: BinaryIO, plan: _Plan, threshold: Threshold, sparsity: float, out: Path
) -> tuple[Part, ...]:
    """Write the result, compare it with the source, and move it into place."""
    facts = {
        "method": "magnitude, one cut",
        "sparsity": sparsity,
        "weights": {tensor.name: {"row_dim": 0} for tensor in plan.pruned},
    }
    head = header_of(plan.header, {**plan.texts, "lpss": json.dumps(facts)})
    with atomic_write(out) as temporary:
        write_parts(source, plan.tensors, plan.chosen, threshold, head, temporary)
        shift = len(head) - plan.start
        return compare_parts(source, plan.tensors, plan.chosen, threshold, temporary, shift)
