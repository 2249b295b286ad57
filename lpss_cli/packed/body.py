"""The body of a file: own sections in the order of the table, then those that tensors share.

A network has many short tensors: biases, norms, thin layers. zstd needs a table for each section,
and a plane of a few hundred bytes is not worth one. So short planes of one kind are joined; how
short, is what makes the file shortest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lpss_cli.packed.entry import Entry, Kind
from lpss_cli.packed.sections import load, store
from lpss_cli.packed.tensors import Encoded

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


def write(table: Sequence[Encoded], compress: bool) -> Body:
    """Put the sections of all tensors one after the other, in the shortest way."""
    stored = [[store(plane, compress) for plane in encoded.planes] for encoded in table]
    bodies = [_write(table, stored, short, compress) for short in BOUNDS]
    # A length in the header is about two bytes once zstd has seen it.
    return min(bodies, key=lambda body: len(body.content) + 2 * _lengths(body))


def _lengths(body: Body) -> int:
    return len(body.joined) + sum(len(entry.sections) for entry in body.entries)


def _write(
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
    joined = [store(b"".join(plain), compress) for plain in shared.values()]
    return Body(entries, short, list(map(len, joined)), b"".join(content + joined))


def shared_lengths(entries: Sequence[Entry], short: int) -> dict[Kind, int]:
    """Return the plain length of each joined section, in the order of the file."""
    lengths: dict[Kind, int] = {}
    for entry in entries:
        for kind, size in entry.planes():
            if size < short:
                lengths[kind] = lengths.get(kind, 0) + size
    return lengths


def read(body: Body) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Yield the plain sections of each tensor: where its values are, and the planes.

    Raises:
        MalformedError: a section is not what the header says.
    """
    place = sum(sum(entry.sections) for entry in body.entries)
    shared: dict[Kind, bytes] = {}
    for (kind, size), stored in zip(
        shared_lengths(body.entries, body.short).items(), body.joined, strict=True
    ):
        shared[kind] = load(body.content[place : place + stored], size)
        place += stored
    used = dict.fromkeys(shared, 0)
    place = 0
    for entry in body.entries:
        own = []
        for size, stored in zip(entry.own(body.short), entry.sections, strict=True):
            own.append(load(body.content[place : place + stored], size))
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
