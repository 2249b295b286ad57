"""A reader of docs/format.md, byte by byte and bit by bit: slow and literal.

It shares no code with the package and checks nothing: it is for whole files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path

import zstandard

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


def vocabulary(version: int) -> bytes:
    """The dictionary of headers, as the docs print it: lines that are joined, up to a version."""
    _, text = FORMAT.read_text().split("## The vocabulary\n")
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 2
    return "".join(blocks[:version]).replace("\n", "").encode()


def read(data: bytes) -> tuple[dict, dict, dict[str, tuple[str, list[int], list]]]:
    """Return meta, about and, by name: dtype, shape, values.

    Values are floats for floating-point types and integers for the others, in row-major order.
    """
    assert data[0:8] == bytes.fromhex("93 4c 50 53 53 0d 0a 1a")
    version, reserved = struct.unpack("<HH", data[8:12])
    stored, plain, body_length = struct.unpack("<IIQ", data[12:28])
    assert version in (1, 2)
    assert reserved == 0
    assert len(data) == 60 + stored + body_length
    assert hashlib.sha256(data[0:28] + data[60:]).digest() == data[28:60]
    header = json.loads(_header(data[60 : 60 + stored], plain, version).decode("utf-8"))
    place, tensors = 60 + stored, {}
    own, shared = {}, {}
    for line in header["tensors"]:
        sections = []
        for length in line.get("sections", []):
            sections.append(data[place : place + length])
            place += length
        own[line["name"]] = sections
        for kind, length in _kinds(line):
            if length < header["short"]:
                shared[kind] = shared.get(kind, 0) + length
    assert len(shared) == len(header["joined"])
    for kind, length in zip(shared, header["joined"], strict=True):
        shared[kind] = _content(data[place : place + length], shared[kind])
        place += length
    assert set(data[place:]) <= {0}
    names = [line["name"] for line in header["tensors"]]
    for line in header["tensors"]:
        if "as" in line:
            dtype, shape, values = tensors[names[line["as"]]]
            tensors[line["name"]] = dtype, shape, list(values)
            continue
        values = _tensor(line, own[line["name"]], shared, header["short"])
        tensors[line["name"]] = line["dtype"], line["shape"], values
    return header["meta"], header["about"], tensors


def _header(stored: bytes, plain: int, version: int) -> bytes:
    if len(stored) == plain:
        return stored
    words = vocabulary(version)
    words = zstandard.ZstdCompressionDict(words, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    content = zstandard.ZstdDecompressor(dict_data=words).decompress(stored)
    assert len(content) == plain
    return content


def _content(stored: bytes, plain: int) -> bytes:
    if len(stored) == plain:
        return stored
    assert len(stored) < plain
    content = zstandard.ZstdDecompressor().decompress(stored)
    assert len(content) == plain
    return content


def _bits(data: bytes) -> list[int]:
    return [(byte >> place) & 1 for byte in data for place in range(8)]


def _matrix(line: dict) -> tuple[int, int]:
    """Rows and columns of the whole tensor."""
    rows = line["shape"][0] if line["shape"] else 1
    return rows, math.prod(line["shape"][1:])


def _chosen(line: dict) -> tuple[int, list[tuple[bool, int]]]:
    """Live rows; for each matrix, whether all of it is stored, and how many values."""
    rows, columns = _matrix(line)
    rows = line["rows"][1] if "rows" in line else rows
    columns = line["columns"][1] if "columns" in line else columns
    first = line["split"][1] if "split" in line else columns
    found = []
    for key, width in (("places", first), ("rest", columns - first)):
        if key == "places" or "split" in line:
            found.append((key not in line, line[key][1] if key in line else rows * width))
    return rows, found


def _kinds(line: dict) -> list[tuple]:
    """What each plane is joined by, and its length: planes of the scales, then of the values."""
    if "as" in line:
        return []
    rows, matrices = _chosen(line)
    of_type = line["dtype"] if line["values"] == "raw" else None
    found = []
    if line["values"].endswith("-rows"):
        for byte in range(4):
            found.append(((line["values"], of_type, "places" not in line, "scale", byte), rows))
    for all_of_it, kept in matrices:
        for byte in range(struct.calcsize("<" + _kind(line))):
            found.append(((line["values"], of_type, all_of_it, "value", byte), kept))
    return found


def _tensor(line: dict, sections: list[bytes], shared: dict, short: int) -> list:
    rows, columns = _matrix(line)
    sections = list(sections)
    live_rows = _choice(line.get("rows"), rows, sections)
    live_columns = _choice(line.get("columns"), columns, sections)
    matrices = [live_columns]
    if "split" in line:
        first = _choice(line["split"], len(live_columns), sections)
        others = [i for i in range(len(live_columns)) if i not in first]
        matrices = [[live_columns[i] for i in part] for part in (first, others)]
    inside = []
    for key, matrix in zip(("places", "rest"), matrices, strict=False):
        for place in _choice(line.get(key), len(live_rows) * len(matrix), sections):
            row = place // len(matrix)
            inside.append((row, matrix[place - row * len(matrix)]))
    planes = []
    for kind, length in _kinds(line):
        if length < short:
            planes.append(shared[kind][:length])
            shared[kind] = shared[kind][length:]
        else:
            planes.append(_content(sections.pop(0), length))
    assert not sections
    scales = None
    if line["values"].endswith("-rows"):
        scales = _planes(planes[:4], len(live_rows), "f")
        planes = planes[4:]
    values, size = [], struct.calcsize("<" + _kind(line))
    for at in range(0, len(planes), size):
        values += _planes(planes[at : at + size], len(planes[at]), _kind(line))
    if line["values"] == "bf16" or (line["values"] == "raw" and line["dtype"] == "bfloat16"):
        values = [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in values]
    tensor = [0] * (rows * columns)
    for (row, column), value in zip(inside, values, strict=True):
        if scales is not None:
            product = value * scales[row]
            value = struct.unpack("<f", struct.pack("<f", product))[0]  # rounded to binary32
        tensor[live_rows[row] * columns + column] = value
    return tensor


def _choice(line: list | None, count: int, sections: list[bytes]) -> list[int]:
    """The chosen ones of ``count``; their sections are taken from the front."""
    if line is None:
        return list(range(count))
    if line[0] == "mask":
        mask = _bits(_content(sections.pop(0), (count + 7) // 8))
        return [i for i in range(count) if mask[i] == 1]
    gaps = _rice(line, sections) if line[0] == "gaps" else _bytes(line, sections)
    assert len(gaps) == line[1]
    places = []
    for gap in gaps:
        places.append((places[-1] + 1 if places else 0) + gap)
    return places


def _bytes(line: list, sections: list[bytes]) -> list[int]:
    gaps, gap = [], 0
    for byte in _content(sections.pop(0), line[2]):
        gap += byte
        if byte < 255:
            gaps.append(gap)
            gap = 0
    return gaps


def _rice(line: list, sections: list[bytes]) -> list[int]:
    _, kept, rice, length = line
    unary = _bits(_content(sections.pop(0), (length + 7) // 8))
    low = _bits(_content(sections.pop(0), (kept * rice + 7) // 8))
    gaps, at = [], 0
    for i in range(kept):
        quotient = 0
        while unary[at] == 0:
            quotient += 1
            at += 1
        at += 1
        gap = quotient << rice
        for bit in range(rice):
            gap += low[i * rice + bit] << bit
        gaps.append(gap)
    assert at == length
    return gaps


def _kind(line: dict) -> str:
    """The letter of Python's struct module for a stored value."""
    if line["values"] != "raw":
        return {"fp16": "e", "fp16-rows": "e", "bf16": "H", "int8-rows": "b"}[line["values"]]
    return {
        "float64": "d", "float32": "f", "float16": "e", "bfloat16": "H", "int64": "q",
        "int32": "i", "int16": "h", "int8": "b", "uint8": "B", "bool": "B",
    }[line["dtype"]]  # fmt: skip


def _planes(parts: list[bytes], count: int, kind: str) -> list:
    return [struct.unpack("<" + kind, bytes(part[i] for part in parts))[0] for i in range(count)]
