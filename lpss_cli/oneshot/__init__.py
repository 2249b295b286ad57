"""One global magnitude cut of a safetensors file that may be larger than memory.

The file is read in blocks: parts of it to see roughly where the threshold lies, then three times to
find it exactly, to write the result, and to compare it with the source. Neither
the network nor any data are needed; what counts as prunable is guessed from names and shapes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lpss_cli.checkpoints.safetensorsfile import read_header
from lpss_cli.checkpoints.snapshot import opened
from lpss_cli.errors import InputError, RunError
from lpss_cli.oneshot.blocks import DTYPES, Entry
from lpss_cli.oneshot.rewriting import Part, compare, header_of, write
from lpss_cli.oneshot.threshold import Threshold, find
from lpss_cli.patterns import resolve, speaks_of_weights
from lpss_cli.targets import check_sparsity, zero_count
from lpss_cli.utils.files import check_space, output, replacing

__all__ = ["Cut", "Part", "cut", "suits"]


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


def suits(path: Path) -> bool:
    """Whether a file is a safetensors file that no lpss run has written."""
    try:
        with opened(path) as file:
            if file.read(9)[8:] != b"{":
                return False
            _, _, texts = read_header(path, file)
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
    plan = _plan(path, skip)
    total = sum(tensor.count for tensor in plan.pruned)
    check_sparsity(sparsity, total)
    wanted = zero_count(total, sparsity)
    with output(out, force=force), opened(path) as source:
        check_space(out, path.stat().st_size)
        threshold = find(path, source, plan.pruned, wanted)
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
    with opened(path) as file:
        header, start, texts = read_header(path, file)
    tensors = [
        Entry(name, entry["dtype"], start + entry["data_offsets"][0], prod(entry["shape"]))
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    ]
    candidates = [t.name for t in tensors if _prunable(t, header[t.name]["shape"])]
    skipped = resolve(tuple(skip), candidates, "--skip")
    return _Plan(header, start, texts, tensors, set(candidates) - set(skipped))


def _prunable(tensor: Entry, shape: Sequence[int]) -> bool:
    return tensor.dtype in DTYPES and len(shape) >= 2 and speaks_of_weights(tensor.name)


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
    with replacing(out) as temporary:
        write(source, plan.tensors, plan.chosen, threshold, head, temporary)
        shift = len(head) - plan.start
        return compare(source, plan.tensors, plan.chosen, threshold, temporary, shift)
