"""The file around the tensors: magic number, lengths, hash, header, sections, padding.

docs/format.md is the format in words. Every number in a file is checked against the file's own size
before memory is taken for it: a hostile file gets no more than a bounded multiple of its length.

The body holds the sections that belong to one tensor, in the order of the table, and then those
that tensors share. A network has many short tensors, such as biases, norms and thin layers. zstd
needs a table for each section, and a plane of a few hundred bytes is not worth one, so short planes
of the same kind are joined. How short they have to be is chosen so that the file is shortest.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lpss_cli.checkpoints.packed.coding import (
    MAGIC,
    VOCABULARIES,
    MalformedError,
    load_header,
    load_section,
    require,
    store_header,
    store_section,
)
from lpss_cli.checkpoints.packed.header import EncodedTensor, Entry, PlaneKind, parse

#: What is written. Version 1 has no ``split`` and ``rest``, and another dictionary.
VERSION = 2
# Magic number, version, 0 (reserved), stored and plain length of the header, length of the body.
_PREAMBLE = struct.Struct("<8sHHIIQ")
_HASH_BYTES = 32
#: Where the header begins.
HEADER_OFFSET = _PREAMBLE.size + _HASH_BYTES
# Keys of the header, and the types of their values.
_TYPES = {"meta": dict, "about": dict, "short": int, "joined": list, "tensors": list}
#: Longest plain header in bytes, and how many times as long as the stored one it may be.
MAX_HEADER, MAX_HEADER_RATIO = 1 << 24, 64
#: Weights that any file may declare, and how many more for each of its bytes: all weights, and
#: those whose value is stored.
FREE_WEIGHTS, WEIGHTS_PER_BYTE, STORED_PER_BYTE = 1 << 20, 256, 16
#: The lengths in bytes below which the writer tries to join planes.
SHORT_PLANES = (0, 1 << 9, 1 << 12)


@dataclass(frozen=True)
class Body:
    """The sections of all tensors, and what the header says about them.

    Attributes:
        entries: the table: one line for each tensor, with the lengths of its sections.
        short: planes of fewer bytes are joined.
        joined: stored lengths of the joined sections.
        data: the bytes of all sections.
    """

    entries: list[Entry]
    short: int
    joined: list[int]
    data: bytes

    def sections(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield the plain sections of each tensor: where its values are, and the planes.

        Raises:
            MalformedError: a section is not what the header says.
        """
        offset = sum(sum(entry.sections) for entry in self.entries)
        joined: dict[PlaneKind, bytes] = {}
        lengths = joined_lengths(self.entries, self.short)
        for (kind, length), stored in zip(lengths.items(), self.joined, strict=True):
            joined[kind] = load_section(self.data[offset : offset + stored], length)
            offset += stored
        used = dict.fromkeys(joined, 0)
        offset = 0
        for entry in self.entries:
            own = []
            for length, stored in zip(
                entry.section_lengths(self.short), entry.sections, strict=True
            ):
                own.append(load_section(self.data[offset : offset + stored], length))
                offset += stored
            planes = []
            long_planes = iter(own[entry.position_sections :])
            for kind, length in entry.planes():
                if length >= self.short:
                    planes.append(next(long_planes))
                else:
                    planes.append(joined[kind][used[kind] : used[kind] + length])
                    used[kind] += length
            yield own[: entry.position_sections], planes


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        meta: what the checkpoint says about its network.
        about: what the file says about itself.
        body: the tensors, still stored.
    """

    meta: dict[str, Any]
    about: dict[str, Any]
    body: Body


def write(
    meta: dict[str, Any],
    about: dict[str, Any],
    table: Sequence[EncodedTensor],
    compress: bool = True,
) -> bytes:
    """Return the bytes of a file.

    Args:
        meta: what the checkpoint says about its network, as JSON can hold it.
        about: what the file says about itself, as JSON can hold it.
        table: the tensors.
        compress: use zstd where it makes a part shorter.

    Raises:
        MalformedError: the header is too long to be read back.
        TypeError, ValueError: ``meta`` or ``about`` is not JSON.
    """
    body = _shortest_body(table, compress)
    document = {
        "meta": meta,
        "about": about,
        "short": body.short,
        "joined": body.joined,
        "tensors": [entry.to_dict() for entry in body.entries],
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    plain = text.encode()
    require(len(plain) <= MAX_HEADER, f"a header of {len(plain):,} bytes")
    header = store_header(plain, VERSION, compress)
    if len(plain) > MAX_HEADER_RATIO * len(header):
        header = plain
    size = HEADER_OFFSET + len(header) + len(body.data)
    data = body.data + bytes(max(0, _least_size(body.entries) - size))
    preamble = _PREAMBLE.pack(MAGIC, VERSION, 0, len(header), len(plain), len(data))
    return preamble + hashlib.sha256(preamble + header + data).digest() + header + data


def _shortest_body(table: Sequence[EncodedTensor], compress: bool) -> Body:
    """Put the sections of all tensors one after the other, in the shortest of several ways."""
    stored = [[store_section(plane, compress) for plane in encoded.planes] for encoded in table]
    bodies = [_build_body(table, stored, short, compress) for short in SHORT_PLANES]
    # A length in the header takes about two bytes once zstd has seen it.
    return min(bodies, key=lambda body: len(body.data) + 2 * _count_lengths(body))


def _count_lengths(body: Body) -> int:
    return len(body.joined) + sum(len(entry.sections) for entry in body.entries)


def _build_body(
    table: Sequence[EncodedTensor], stored: Sequence[Sequence[bytes]], short: int, compress: bool
) -> Body:
    """Put the sections one after the other.

    Args:
        table: the tensors.
        stored: their planes as they would be stored alone.
        short: planes of fewer bytes are joined.
        compress: use zstd where it makes a section shorter.
    """
    joined: dict[PlaneKind, list[bytes]] = {}
    entries: list[Entry] = []
    sections: list[bytes] = []
    for encoded, stored_planes in zip(table, stored, strict=True):
        own = list(encoded.positions)
        for (kind, length), plain, plane in zip(
            encoded.entry.planes(), encoded.planes, stored_planes, strict=True
        ):
            if length < short:
                joined.setdefault(kind, []).append(plain)
            else:
                own.append(plane)
        entries.append(replace(encoded.entry, sections=tuple(map(len, own))))
        sections += own
    shared = [store_section(b"".join(planes), compress) for planes in joined.values()]
    return Body(entries, short, list(map(len, shared)), b"".join(sections + shared))


def joined_lengths(entries: Sequence[Entry], short: int) -> dict[PlaneKind, int]:
    """Return the plain length of each joined section, in the order of the file."""
    lengths: dict[PlaneKind, int] = {}
    for entry in entries:
        for kind, length in entry.planes():
            if length < short:
                lengths[kind] = lengths.get(kind, 0) + length
    return lengths


def _least_size(entries: Sequence[Entry]) -> int:
    """Return how many bytes a file needs at least to be believed to hold so many weights."""
    total = sum(entry.count for entry in entries)
    stored = sum(entry.kept for entry in entries)
    least_for_all = -(-(total - FREE_WEIGHTS) // WEIGHTS_PER_BYTE)
    least_for_stored = -(-(stored - FREE_WEIGHTS) // STORED_PER_BYTE)
    return max(least_for_all, least_for_stored, 0)


def read(data: bytes) -> Content:
    """Read the bytes of a file, and check everything but the content of the sections.

    Raises:
        MalformedError: the bytes are incomplete, or not what a writer makes.
    """
    require(len(data) >= HEADER_OFFSET, "a file that ends before its header")
    magic, version, reserved, stored, plain, length = _PREAMBLE.unpack_from(data)
    require(magic == MAGIC, "the magic number of another format")
    is_known = version in VOCABULARIES and reserved == 0
    require(is_known, f"format {version}, which this lpss does not know")
    fits = len(data) == HEADER_OFFSET + stored + length
    require(fits, "a file of another length than it declares")
    rest = memoryview(data)[HEADER_OFFSET:]
    digest = hashlib.sha256(data[: _PREAMBLE.size])
    digest.update(rest)
    is_intact = digest.digest() == data[_PREAMBLE.size : HEADER_OFFSET]
    require(is_intact, "content that does not have its hash")
    fits = plain <= min(MAX_HEADER, MAX_HEADER_RATIO * stored)
    require(fits, "a header that is too long")
    content = _parse(load_header(bytes(rest[:stored]), plain, version))
    body = content.body
    entries = body.entries
    has_split = any(entry.split is not None for entry in entries)
    require(version > 1 or not has_split, "a tensor of another version than the file's")
    require(_least_size(entries) <= len(data), "more weights than a file of this length holds")
    used = sum(sum(entry.sections) for entry in entries) + sum(body.joined)
    require(used <= length, "sections beyond the end of the file")
    require(not any(rest[stored + used :]), "padding that is not zero")
    return replace(content, body=replace(body, data=bytes(rest[stored:])))


def _parse(header: bytes) -> Content:
    """Return what the header says, without the bytes of the body."""
    try:
        document = json.loads(header)
    except (ValueError, RecursionError):
        raise MalformedError("a header that is not JSON") from None
    has_keys = isinstance(document, dict) and set(document) == set(_TYPES)
    require(has_keys, f"a header with other keys than {', '.join(_TYPES)}")
    has_types = all(type(document[key]) is kind for key, kind in _TYPES.items())
    require(has_types, "a header of other types")
    meta, about, short, joined, lines = (document[key] for key in _TYPES)
    require(0 <= short <= SHORT_PLANES[-1], "short planes of a length out of range")
    entries = [parse(line, index, short) for index, line in enumerate(lines)]
    originals = [entries[entry.copy_of] for entry in entries if entry.copy_of is not None]
    require(all(original.copy_of is None for original in originals), "a copy of a copy")
    names = {entry.name for entry in entries}
    require(len(names) == len(entries), "two tensors of one name")
    are_lengths = all(type(size) is int and size >= 0 for size in joined)
    fits = are_lengths and len(joined) == len(joined_lengths(entries, short))
    require(fits, "other joined sections")
    return Content(meta, about, Body(entries, short, joined, b""))
