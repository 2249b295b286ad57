"""The result of a cut: written block by block, and read back against the source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lpss_cli.checkpoints.safetensorsfile import read_header
from lpss_cli.checkpoints.snapshot import opened
from lpss_cli.errors import RunError
from lpss_cli.oneshot.blocks import Entry, blocks, copy, equal, keys_of
from lpss_cli.oneshot.threshold import Threshold


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


def write(
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


def compare(
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
    with opened(written) as file:
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
