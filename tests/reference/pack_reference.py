"""A reader of docs/format.md, byte by byte and bit by bit: slow and literal.

It shares no code with the package and checks nothing: it is for whole files.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct

import zstandard


def read(data: bytes) -> tuple[dict, dict, dict[str, tuple[str, list[int], list]]]:
    """Return meta, about and, by name: dtype, shape, values.

    Values are floats for floating-point types and integers for the others, in row-major order.
    """
    assert data[0:8] == bytes.fromhex("93 4c 50 53 53 0d 0a 1a")
    version, reserved = struct.unpack("<HH", data[8:12])
    stored, plain, body_length = struct.unpack("<IIQ", data[12:28])
    assert (version, reserved) == (1, 0)
    assert len(data) == 60 + stored + body_length
    assert hashlib.sha256(data[0:28] + data[60:]).digest() == data[28:60]
    header = json.loads(_content(data[60 : 60 + stored], plain).decode("utf-8"))
    place, tensors = 60 + stored, {}
    names = [line["name"] for line in header["tensors"]]
    for line in header["tensors"]:
        if line["index"] == "same":
            dtype, shape, values = tensors[names[line["as"]]]
            tensors[line["name"]] = dtype, shape, list(values)
            continue
        sections = []
        for length in line["sections"]:
            sections.append(data[place : place + length])
            place += length
        tensors[line["name"]] = line["dtype"], line["shape"], _tensor(line, sections)
    assert set(data[place:]) <= {0}
    return header["meta"], header["about"], tensors


def _content(stored: bytes, plain: int) -> bytes:
    if len(stored) == plain:
        return stored
    assert len(stored) < plain
    content = zstandard.ZstdDecompressor().decompress(stored)
    assert len(content) == plain
    return content


def _bits(data: bytes) -> list[int]:
    return [(byte >> place) & 1 for byte in data for place in range(8)]


def _tensor(line: dict, sections: list[bytes]) -> list:
    n = math.prod(line["shape"])
    rows = line["shape"][0] if line["shape"] else 1
    if line["index"] == "gaps":
        places = _places(line, sections)
        sections = sections[2:]
    elif line["index"] == "mask":
        mask = _bits(_content(sections[0], (n + 7) // 8))[:n]
        places = [i for i in range(n) if mask[i] == 1]
        sections = sections[1:]
    else:
        places = list(range(n))
    scales = None
    if line["values"].endswith("-rows"):
        scales = _planes(sections[:4], rows, "f")
        sections = sections[4:]
    values = _planes(sections, len(places), _kind(line))
    if line["values"] == "bf16" or (line["values"] == "raw" and line["dtype"] == "bfloat16"):
        values = [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in values]
    tensor = [0] * n
    for place, value in zip(places, values, strict=True):
        if scales is not None:
            product = value * scales[place // (n // rows)]
            value = struct.unpack("<f", struct.pack("<f", product))[0]  # rounded to binary32
        tensor[place] = value
    return tensor


def _places(line: dict, sections: list[bytes]) -> list[int]:
    unary = _bits(_content(sections[0], (line["unary"] + 7) // 8))
    low = _bits(_content(sections[1], (line["kept"] * line["rice"] + 7) // 8))
    places, at = [], 0
    for i in range(line["kept"]):
        quotient = 0
        while unary[at] == 0:
            quotient += 1
            at += 1
        at += 1
        gap = quotient << line["rice"]
        for bit in range(line["rice"]):
            gap += low[i * line["rice"] + bit] << bit
        places.append((places[-1] + 1 if places else 0) + gap)
    assert at == line["unary"]
    return places


def _kind(line: dict) -> str:
    """The letter of Python's struct module for a stored value."""
    if line["values"] != "raw":
        return {"fp16": "e", "fp16-rows": "e", "bf16": "H", "int8-rows": "b"}[line["values"]]
    return {
        "float64": "d", "float32": "f", "float16": "e", "bfloat16": "H", "int64": "q",
        "int32": "i", "int16": "h", "int8": "b", "uint8": "B", "bool": "B",
    }[line["dtype"]]  # fmt: skip


def _planes(sections: list[bytes], count: int, kind: str) -> list:
    parts = [_content(section, count) for section in sections]
    return [struct.unpack("<" + kind, bytes(part[i] for part in parts))[0] for i in range(count)]
