"""The file around the tensors: magic, lengths, hash, header, sections, padding.

docs/format.md is the format in words. Every number of a file is checked against the file's own size
before memory is taken for it: a hostile file gets no more than a bounded multiple of its length.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .bits import Array, MalformedError, need
from .entry import Entry, parse
from .sections import load, store
from .tensors import decode

#: A byte that is no text, then signs that a transfer as text would change.
MAGIC = b"\x93LPSS\r\n\x1a"
VERSION = 1
# magic, version, reserved (0), stored and plain length of the header, length of the body.
_FIXED = struct.Struct("<8sHHIIQ")
_HASH = 32
START = _FIXED.size + _HASH
#: Longest plain header, and how much longer than the stored one it may be.
HEADER_LIMIT, HEADER_RATIO = 1 << 24, 64
#: Weights that any file may declare, and how many more for each of its bytes: all of them, and
#: those whose value is stored.
FREE, PER_BYTE, KEPT_PER_BYTE = 1 << 20, 256, 16


@dataclass(frozen=True)
class Content:
    """What a file holds: facts, the table, and the tensors' bits in the table's order."""

    meta: dict[str, Any]
    about: dict[str, Any]
    entries: list[Entry]
    arrays: list[Array]


def write(
    meta: dict[str, Any],
    about: dict[str, Any],
    table: Sequence[tuple[Entry, Sequence[bytes]]],
    compress: bool = True,
) -> bytes:
    """Return the file's bytes.

    Args:
        meta: what the checkpoint says of its network; JSON-like.
        about: what the file says of itself; JSON-like.
        table: entries with their stored sections.
        compress: let the header be a zstd frame.

    Raises:
        MalformedError: the header is too long to be read back.
        TypeError, ValueError: the facts are not JSON.
    """
    lines = {"meta": meta, "about": about, "tensors": [entry.to_dict() for entry, _ in table]}
    text = json.dumps(lines, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    plain = text.encode()
    need(len(plain) <= HEADER_LIMIT, f"a header of {len(plain):,} bytes")
    header = store(plain, compress)
    if len(plain) > HEADER_RATIO * len(header):
        header = plain
    body = b"".join(part for _, parts in table for part in parts)
    size = START + len(header) + len(body)
    body += bytes(max(0, _least_size([entry for entry, _ in table]) - size))
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(header), len(plain), len(body))
    return fixed + hashlib.sha256(fixed + header + body).digest() + header + body


def _least_size(entries: Sequence[Entry]) -> int:
    """Return the size below which a file is not believed to hold so many weights."""
    total = sum(entry.count for entry in entries)
    kept = sum(entry.kept for entry in entries)
    return max(-(-(total - FREE) // PER_BYTE), -(-(kept - FREE) // KEPT_PER_BYTE), 0)


def read(data: bytes) -> Content:
    """Read a file's bytes.

    Raises:
        MalformedError: they are not whole, or not what a writer makes.
    """
    meta, about, entries, body = _parse(data)
    arrays: list[Array] = []
    place = 0
    for entry in entries:
        stored = []
        for size in entry.sections:
            stored.append(body[place : place + size])
            place += size
        arrays.append(decode(entry, stored, arrays))
    return Content(meta, about, entries, arrays)


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, Any], list[Entry], bytes]:
    """Return facts, table and body; everything is checked but the sections' content."""
    need(len(data) >= START, "a file that ends before its header")
    magic, version, reserved, stored, plain, length = _FIXED.unpack_from(data)
    need(magic == MAGIC, "no magic number of a pack")
    need(version == VERSION and reserved == 0, f"format {version}, of another lpss than this one")
    need(len(data) == START + stored + length, "a file of another length than it declares")
    rest = memoryview(data)[START:]
    digest = hashlib.sha256(data[: _FIXED.size])
    digest.update(rest)
    need(digest.digest() == data[_FIXED.size : START], "content that does not have its hash")
    need(plain <= min(HEADER_LIMIT, HEADER_RATIO * stored), "a header that is too long")
    meta, about, entries = _table(load(bytes(rest[:stored]), plain))
    need(_least_size(entries) <= len(data), "more weights than a file of this length holds")
    used = sum(sum(entry.sections) for entry in entries)
    need(used <= length, "sections beyond the end of the file")
    need(not any(rest[stored + used :]), "padding that is not zero")
    return meta, about, entries, bytes(rest[stored:])


def _table(header: bytes) -> tuple[dict[str, Any], dict[str, Any], list[Entry]]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError):
        raise MalformedError("a header that is no JSON") from None
    right = isinstance(content, dict) and set(content) == {"meta", "about", "tensors"}
    need(right, "a header with other keys than meta, about and tensors")
    meta, about, lines = (content[key] for key in ("meta", "about", "tensors"))
    right = isinstance(meta, dict) and isinstance(about, dict) and isinstance(lines, list)
    need(right, "a header of other types")
    entries = [parse(line, place) for place, line in enumerate(lines)]
    copies = [entries[entry.same] for entry in entries if entry.index == "same"]
    need(all(other.index != "same" for other in copies), "a copy of a copy")
    need(len({entry.name for entry in entries}) == len(entries), "two tensors of one name")
    return meta, about, entries
