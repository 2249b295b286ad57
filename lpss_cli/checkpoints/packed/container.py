"""The file around the tensors: magic, lengths, hash, header, sections, padding.

docs/format.md is the format in words. Every number of a file is checked against the file's own size
before memory is taken for it: a hostile file gets no more than a bounded multiple of its length.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lpss_cli.checkpoints.packed.coding import (
    VOCABULARIES,
    Array,
    MalformedError,
    load_header,
    load_section,
    need,
    store_header,
    store_section,
)
from lpss_cli.checkpoints.packed.header import Entry, Kind, parse
from lpss_cli.checkpoints.packed.tensors import Encoded, decode

# MERGED: The body of a file: own sections in the order of the table, then those that tensors share.
# MERGED: A network has many short tensors: biases, norms, thin layers. zstd needs a table for
# MERGED: each section,
# MERGED: and a plane of a few hundred bytes is not worth one. So short planes of one kind are
# MERGED: joined; how
# MERGED: short, is what makes the file shortest.
#: The writer's bounds between short planes and others, in bytes.
BOUNDS = (0, 1 << 9, 1 << 12)


@dataclass(frozen=True)
class Body:
    """The body, and what the header says of it.

    Attributes:
        entries: lines, with the lengths of their sections.
        short: planes of fewer bytes are joined.
        joined: stored lengths of the joined sections.
        content: the bytes.
    """

    entries: list[Entry]
    short: int
    joined: list[int]
    content: bytes


def write_body(table: Sequence[Encoded], compress: bool) -> Body:
    """Put the sections of all tensors one after the other, in the shortest way."""
    stored = [[store_section(plane, compress) for plane in encoded.planes] for encoded in table]
    bodies = [_write_body(table, stored, short, compress) for short in BOUNDS]
    # A length in the header is about two bytes once zstd has seen it.
    return min(bodies, key=lambda body: len(body.content) + 2 * _lengths(body))


def _lengths(body: Body) -> int:
    return len(body.joined) + sum(len(entry.sections) for entry in body.entries)


def _write_body(
    table: Sequence[Encoded], stored: Sequence[Sequence[bytes]], short: int, compress: bool
) -> Body:
    shared: dict[Kind, list[bytes]] = {}
    entries: list[Entry] = []
    content: list[bytes] = []
    for encoded, planes in zip(table, stored, strict=True):
        own = list(encoded.parts)
        for (kind, size), plain, plane in zip(
            encoded.entry.planes(), encoded.planes, planes, strict=True
        ):
            if size < short:
                shared.setdefault(kind, []).append(plain)
            else:
                own.append(plane)
        entries.append(replace(encoded.entry, sections=tuple(map(len, own))))
        content += own
    joined = [store_section(b"".join(plain), compress) for plain in shared.values()]
    return Body(entries, short, list(map(len, joined)), b"".join(content + joined))


def shared_lengths(entries: Sequence[Entry], short: int) -> dict[Kind, int]:
    """Return the plain length of each joined section, in the order of the file."""
    lengths: dict[Kind, int] = {}
    for entry in entries:
        for kind, size in entry.planes():
            if size < short:
                lengths[kind] = lengths.get(kind, 0) + size
    return lengths


def read_body(body: Body) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Yield the plain sections of each tensor: where its values are, and the planes.

    Raises:
        MalformedError: a section is not what the header says.
    """
    place = sum(sum(entry.sections) for entry in body.entries)
    shared: dict[Kind, bytes] = {}
    for (kind, size), stored in zip(
        shared_lengths(body.entries, body.short).items(), body.joined, strict=True
    ):
        shared[kind] = load_section(body.content[place : place + stored], size)
        place += stored
    used = dict.fromkeys(shared, 0)
    place = 0
    for entry in body.entries:
        own = []
        for size, stored in zip(entry.own(body.short), entry.sections, strict=True):
            own.append(load_section(body.content[place : place + stored], size))
            place += stored
        planes = []
        rest = iter(own[entry.parts :])
        for kind, size in entry.planes():
            if size >= body.short:
                planes.append(next(rest))
            else:
                planes.append(shared[kind][used[kind] : used[kind] + size])
                used[kind] += size
        yield own[: entry.parts], planes


#: A byte that is no text, then signs that a transfer as text would change.
MAGIC = b"\x93LPSS\r\n\x1a"
#: What is written; 1 is read too: without ``split`` and ``rest``, and with other words.
VERSION = 2
# magic, version, reserved (0), stored and plain length of the header, length of the body.
_FIXED = struct.Struct("<8sHHIIQ")
_HASH = 32
START = _FIXED.size + _HASH
# Keys of the header and their types.
_TYPES = {"meta": dict, "about": dict, "short": int, "joined": list, "tensors": list}
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
    table: Sequence[Encoded],
    compress: bool = True,
) -> bytes:
    """Return the file's bytes.

    Args:
        meta: what the checkpoint says of its network; JSON-like.
        about: what the file says of itself; JSON-like.
        table: the tensors.
        compress: use zstd where it makes a part shorter.

    Raises:
        MalformedError: the header is too long to be read back.
        TypeError, ValueError: the facts are not JSON.
    """
    made = write_body(table, compress)
    lines: dict[str, Any] = {
        "meta": meta,
        "about": about,
        "short": made.short,
        "joined": made.joined,
    }
    lines["tensors"] = [entry.to_dict() for entry in made.entries]
    text = json.dumps(lines, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    plain = text.encode()
    need(len(plain) <= HEADER_LIMIT, f"a header of {len(plain):,} bytes")
    header = store_header(plain, VERSION, compress)
    if len(plain) > HEADER_RATIO * len(header):
        header = plain
    size = START + len(header) + len(made.content)
    content = made.content + bytes(max(0, _least_size(made.entries) - size))
    fixed = _FIXED.pack(MAGIC, VERSION, 0, len(header), len(plain), len(content))
    return fixed + hashlib.sha256(fixed + header + content).digest() + header + content


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
    meta, about, stored = _parse(data)
    arrays: list[Array] = []
    for entry, (parts, planes) in zip(stored.entries, read_body(stored), strict=True):
        arrays.append(decode(entry, parts, planes, arrays))
    return Content(meta, about, stored.entries, arrays)


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, Any], Body]:
    """Return facts and body; everything is checked but the sections' content."""
    need(len(data) >= START, "a file that ends before its header")
    magic, version, reserved, stored, plain, length = _FIXED.unpack_from(data)
    need(magic == MAGIC, "no magic number of a pack")
    known = version in VOCABULARIES and reserved == 0
    need(known, f"format {version}, of another lpss than this one")
    need(len(data) == START + stored + length, "a file of another length than it declares")
    rest = memoryview(data)[START:]
    digest = hashlib.sha256(data[: _FIXED.size])
    digest.update(rest)
    need(digest.digest() == data[_FIXED.size : START], "content that does not have its hash")
    need(plain <= min(HEADER_LIMIT, HEADER_RATIO * stored), "a header that is too long")
    meta, about, content = _table(load_header(bytes(rest[:stored]), plain, version))
    entries = content.entries
    split = any(entry.split is not None for entry in entries)
    need(version > 1 or not split, "a tensor of another version than the file's")
    need(_least_size(entries) <= len(data), "more weights than a file of this length holds")
    used = sum(sum(entry.sections) for entry in entries) + sum(content.joined)
    need(used <= length, "sections beyond the end of the file")
    need(not any(rest[stored + used :]), "padding that is not zero")
    return meta, about, replace(content, content=bytes(rest[stored:]))


def _table(header: bytes) -> tuple[dict[str, Any], dict[str, Any], Body]:
    """Return facts and the body's description, without its bytes."""
    try:
        content = json.loads(header)
    except (ValueError, RecursionError):
        raise MalformedError("a header that is no JSON") from None
    right = isinstance(content, dict) and set(content) == set(_TYPES)
    need(right, f"a header with other keys than {', '.join(_TYPES)}")
    right = all(type(content[key]) is kind for key, kind in _TYPES.items())
    need(right, "a header of other types")
    meta, about, short, joined, lines = (content[key] for key in _TYPES)
    need(0 <= short <= BOUNDS[-1], "short planes of a length out of range")
    entries = [parse(line, place, short) for place, line in enumerate(lines)]
    copies = [entries[entry.same] for entry in entries if entry.same is not None]
    need(all(other.same is None for other in copies), "a copy of a copy")
    need(len({entry.name for entry in entries}) == len(entries), "two tensors of one name")
    whole = all(type(size) is int and size >= 0 for size in joined)
    need(whole and len(joined) == len(shared_lengths(entries, short)), "other joined sections")
    return meta, about, Body(entries, short, joined, b"")
