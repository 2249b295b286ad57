"""Damaged and hostile packed files: a one-line error, and no more memory than they warrant."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import struct
import tracemalloc
from unittest import mock

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.packed import MalformedError, container, pack, tensors, unpack
from lpss_cli.checkpoints.packed.coding import MAGIC
from lpss_cli.errors import InputError

LIMIT = 150e6  # bytes that reading a small file may take, whatever it declares


def sample_network() -> dict[str, torch.Tensor]:
    """One tensor for every coding, with scales and without, and one for every sort of dtype."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 30, generator=generator)
    drawn = torch.rand(20, 30, generator=generator)
    dead = torch.zeros(60, 80)
    inside = torch.randn(12, 10, generator=generator) * (drawn[:12, :10] < 0.8)
    dead[3:60:5, torch.randperm(80, generator=generator)[:10]] = inside
    uneven = weight * (drawn < torch.arange(30) % 2 * 0.8 + 0.02)
    steady = torch.zeros(6000)
    steady[torch.randint(130, 250, (24,), generator=generator).cumsum(0)] = 0.5
    return {
        "gaps.weight": weight * (drawn < 0.1),
        "mask.weight": weight * (drawn < 0.5),
        "dense.weight": weight,
        "dead.weight": dead,
        "bytes.weight": steady.reshape(20, 300),
        "split.weight": uneven,
        "half.weight": (weight * (drawn < 0.2)).bfloat16(),
        "same.weight": weight,
        "bias": weight[0],
        "steps": torch.tensor(3),
        "flags": drawn[0] < 0.5,
    }


NAMES = [name for name in sample_network() if name.endswith("weight")]
# At the usual cost such small tensors would not be split.
with mock.patch.object(tensors, "SPLIT_COST", 13):
    WHOLE = pack(sample_network(), {"arch": "x"}, NAMES, "int8")
    PLAIN = pack(sample_network(), {"arch": "x"}, NAMES, "int8", compress=False)
START = container.HEADER_OFFSET


def parts(data: bytes) -> tuple[dict, bytes]:
    """Return header and body of an uncompressed file."""
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[START : START + size]), data[START + size :]


def build(header: dict | bytes, body: bytes, version: int = 2) -> bytes:
    """Return a file with the right lengths and hash, whatever it holds."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    fixed = struct.pack("<8sHHIIQ", MAGIC, version, 0, len(text), len(text), len(body))
    return fixed + hashlib.sha256(fixed + text + body).digest() + text + body


def test_the_sample_has_every_coding():
    for data in (WHOLE, PLAIN):
        entries = {entry.name: entry for entry in unpack(data).entries}
        for coding in ("gaps", "mask", "bytes"):
            assert entries[f"{coding}.weight"].positions.coding == coding
        assert entries["dense.weight"].positions.coding == "all"
        assert entries["dead.weight"].live_rows.kept == 12
        assert entries["dead.weight"].live_columns.kept == 10
        assert entries["same.weight"].copy_of is not None
        assert entries["split.weight"].split.kept == 15
    assert parts(PLAIN)[0]["short"] > 0
    assert parts(PLAIN)[0]["joined"]


def test_a_rebuilt_file_is_read():
    assert list(unpack(build(*parts(PLAIN))).state_dict) == list(sample_network())


def error_of(tmp_path, data: bytes) -> str:
    """Read a file as every command does; return its error, which must be one line."""
    path = tmp_path / "m.lpss"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read(path)
    assert "\n" not in error.value.what
    return error.value.what


@pytest.mark.parametrize("part", range(20))
def test_a_truncated_file_is_refused(tmp_path, part):
    for whole in (WHOLE, PLAIN):
        error_of(tmp_path, whole[: len(whole) * part // 20])
        error_of(tmp_path, whole[: len(whole) - 1 - part])


@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_no_flipped_bit_goes_unnoticed(place):
    data = bytearray(WHOLE)
    data[place // 8] ^= 1 << place % 8
    with pytest.raises(MalformedError):
        unpack(bytes(data))


@pytest.mark.parametrize("more", [b"\0", WHOLE])
def test_bytes_after_the_end_are_refused(tmp_path, more):
    assert "another length than it declares" in error_of(tmp_path, WHOLE + more)


HUGE = (2**31 - 1, 2**31, 2**62, 2**63, 10**30, -1, 0, 1, True, None, 1.5, "7", [], {})


WORDS = ("gaps", "mask", "bytes", "all", "raw", "fp16", "fp16-rows", "bool")


def peak_memory(data: bytes) -> float:
    """Return the most memory that reading takes; fail on any error but ``MalformedError``."""
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedError):
            unpack(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("line", range(len(sample_network())))
def test_any_number_in_a_line_may_be_wrong(line):
    """Replace every number and text of the table by others, with the right hash."""
    for key, values in parts(PLAIN)[0]["tensors"][line].items():
        for place in range(len(values)) if isinstance(values, list) and values else [None]:
            for value in (*HUGE, *WORDS):
                header, body = parts(PLAIN)
                described = header["tensors"][line]
                if place is None:
                    described[key] = value
                else:
                    described[key][place] = value
                assert peak_memory(build(header, body)) < LIMIT


@pytest.mark.parametrize("line", range(len(sample_network())))
def test_any_selection_and_code_may_be_added_or_missing(line):
    choices = (["mask", 3], ["gaps", 2**40, 0, 0], ["bytes", 0, 0], ["mask", 1], [], None, "mask")
    for key in ("rows", "columns", "split", "places", "rest", "values", "sections", "as", "shape"):
        for value in (*choices, "fp16-rows", "int8-rows", [2**31 - 1, 0], [0, 2**31 - 1], [2**30]):
            header, body = parts(PLAIN)
            header["tensors"][line][key] = value
            assert peak_memory(build(header, body)) < LIMIT
        header["tensors"][line].pop(key)
        assert peak_memory(build(header, body)) < LIMIT


def test_what_the_header_says_about_joined_planes_may_be_wrong():
    for value in HUGE:
        header, body = parts(PLAIN)
        assert peak_memory(build({**header, "short": value}, body)) < LIMIT
        assert peak_memory(build({**header, "joined": value}, body)) < LIMIT
        for place in range(len(header["joined"])):
            joined = [value if i == place else n for i, n in enumerate(header["joined"])]
            assert peak_memory(build({**header, "joined": joined}, body)) < LIMIT


def test_random_edits_of_header_and_body_are_refused_or_read():
    draw = random.Random(0)
    for _ in range(300):
        header, body = parts(PLAIN)
        changed = bytearray(body)
        for _ in range(draw.randint(0, 3)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        text = bytearray(json.dumps(header).encode())
        for _ in range(draw.randint(0, 2)):
            text[draw.randrange(len(text))] = draw.choice(b'0123456789"[]{},:e-x\xff')
        assert peak_memory(build(bytes(text), bytes(changed))) < LIMIT


def test_edits_of_compressed_sections_are_refused_or_read():
    draw = random.Random(1)
    size, plain = struct.unpack_from("<II", WHOLE, 12)
    for _ in range(300):
        data = bytearray(WHOLE)
        data[draw.randrange(START + size, len(data))] = draw.randrange(256)
        data[28:60] = hashlib.sha256(data[:28] + data[60:]).digest()
        assert peak_memory(bytes(data)) < LIMIT
    assert plain > size  # the header was compressed too


def line(**changes) -> dict:
    dense = {"name": "w", "dtype": "float32", "shape": [4], "values": "raw",
             "sections": [4, 4, 4, 4]}  # fmt: skip
    return {**dense, **changes}


def file(*lines: object, body: bytes = bytes(16), short: object = 0, joined: object = ()) -> bytes:
    return build({"meta": {}, "about": {}, "short": short, "joined": joined or [],
                  "tensors": list(lines)}, body)  # fmt: skip


def gaps(shape: list[int], kept: int, rice: int, unary: int, *sizes: int) -> dict:
    return line(shape=shape, places=["gaps", kept, rice, unary], sections=list(sizes))


def copy_of(place: int, **changes) -> dict:
    return {"name": "c", "dtype": "float32", "shape": [4], "as": place, **changes}


BOMB = zstandard.ZstdCompressor().compress(bytes(2**30))
BOMBS = {
    "a header that unfolds": build(b"{" + b" " * 100, b"")[:16] + b"\xff\xff\xff\x7f" + bytes(99),
    "all zeros, for nothing": file(gaps([2**31 - 1], 0, 0, 0, 0, 0, 0, 0, 0, 0), body=b""),
    "many all zeros": file(
        *({**gaps([10**6], 0, 0, 0, 0, 0, 0, 0, 0, 0), "name": str(i)} for i in range(1000)),
        body=b"",
    ),
    "a frame of a gigabyte": file(
        line(shape=[2**30], dtype="uint8", sections=[len(BOMB)]), body=BOMB
    ),
    "a frame of a gigabyte for a short content": file(
        line(shape=[10**6], dtype="uint8", sections=[len(BOMB)]), body=BOMB
    ),
    "many copies": file(
        line(shape=[10**6], dtype="uint8", sections=[10**6]),
        *(copy_of(0, name=str(i), dtype="uint8", shape=[10**6]) for i in range(2000)),
        body=bytes(10**6),
    ),
    "remainders of 31 bits": file(gaps([2**20], 2**20, 31, 2**20, 9, 9, 9, 9, 9, 9), body=BOMB),
    "gaps of bytes": file(
        line(shape=[2**28], places=["bytes", 1, 1 + 2**28 // 255], sections=[9, 0, 0, 0, 0]),
        body=BOMB,
    ),
    "rows of an empty tensor": file(
        line(shape=[2**31 - 1, 0], rows=["mask", 2**31 - 1], sections=[len(BOMB)]), body=BOMB
    ),
    "columns of an empty tensor": file(
        line(shape=[0, 2**31 - 1], columns=["mask", 1], sections=[len(BOMB)]), body=BOMB
    ),
    "scales of an empty tensor": file(
        line(shape=[2**30, 0], values="int8-rows", sections=[len(BOMB)] * 4), body=BOMB * 4
    ),
    "a full grid in two": file(
        line(shape=[2**15, 2**15], split=["mask", 2**14], rest=["mask", 2**28],
             sections=[9, len(BOMB), 9, 9, 9, 9, 9, 9, 9, 9]), body=bytes(9) + BOMB,
    ),
    "a full grid": file(
        line(shape=[2**15, 2**15], rows=["mask", 2**15], columns=["mask", 2**15],
             sections=[9, 9, len(BOMB)]), body=bytes(18) + BOMB,
    ),
    "many joined planes": file(
        *(line(name=str(i), shape=[4000], sections=[]) for i in range(2000)), short=4096,
        joined=[len(BOMB)] * 4, body=BOMB * 4,
    ),
    "a stream of zeros": file(gaps([2**31 - 1], 1, 0, 2**31 - 1, 9, 0, 0, 0, 0, 0), body=BOMB),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, name):
    assert len(BOMBS[name]) < 2e6
    assert peak_memory(BOMBS[name]) < LIMIT
    error_of(tmp_path, BOMBS[name])


def zeros_frame(size: int, declared: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(write_content_size=declared)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size))


WRONG = {
    "unexpected keys": line(extra=1),
    "an unknown type": line(dtype="float8"),
    "an unknown coding": line(places=["csr", 1]),
    "an unknown code": line(values="fp8"),
    "code of values": line(dtype="int32", values="fp16", sections=[4, 4]),
    "another number of sections": line(sections=[4, 4, 4]),
    "longer than its content": line(sections=[5, 4, 4, 3]),
    "beyond the end": line(sections=[4, 4, 4, 5]),
    "range": line(shape=[-1]),
    "an impossible shape": line(shape="4"),
    "too large": line(shape=[2**16, 2**16]),
    "that is too large": line(shape=[2**31 - 1, 2**31 - 1, 0], sections=[0] * 4),
    "not described": 7,
    "without a name": line(name=7),
    "gaps for": gaps([4], 2, 0, 3, 1, 0, 2, 2, 2, 2),
    "kept weights": line(places=["mask", 2], sections=[1, 2, 2, 2, 2]),
    "a parameter": gaps([4], 4, 2, 4, 1, 1, 4, 4, 4, 4),
    "5 kept out of 4": line(rows=["mask", 5], sections=[1, 5, 5, 5, 5]),
    "2 kept out of 1": line(columns=["mask", 2], sections=[1, 8, 8, 8, 8]),
    "9 kept out of 8": line(shape=[4, 4], rows=["mask", 2], places=["mask", 9], sections=[]),
    "a length out of range": line(places=["bytes", 1, 2], sections=[2, 1, 1, 1, 1]),
    "a number out of range in a coding": line(places=["mask", 1, 1], sections=[1, 1, 1, 1, 1]),
    "the rest of a tensor that": line(rest=["mask", 1], sections=[1, 1, 1, 1, 1]),
    "5 kept out of 2": line(shape=[2, 2], split=["mask", 5], sections=[1, 5, 5, 5, 5]),
    "3 kept out of 2": line(shape=[2, 2], split=["mask", 1], rest=["mask", 3], sections=[]),
    "a selection or a scale in an empty": line(shape=[0], places=["mask", 0], sections=[0] * 5),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_the_error_says_which_rule_a_line_breaks(tmp_path, what):
    assert what in error_of(tmp_path, file(WRONG[what]))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (file(line(), line()), "two tensors of one name"),
        (file(line(), body=bytes(15) + b"\x7f\x80"), "padding that is not zero"),
        (file(line(), body=bytes(8) + b"\x80" * 4 + b"\x7f" * 4), "not finite"),
        (file(line(dtype="bool", sections=[4]), body=b"\0\1\2\1"),
         "a truth value other than 0 and 1"),
        (file(copy_of(0)), "range"),
        (file(line(sections=[len(zeros_frame(99, False)), 99, 99, 99], shape=[99]),
              body=zeros_frame(99, False) + bytes(297)), "instead of 99"),
        (file(line(sections=[5, 99, 99, 99], shape=[99]), body=bytes(302)), "a broken zstd frame"),
        (build(b"[" * 100_000, b""), "not JSON"),
        (build(b"[]", b""), "other keys than meta, about, short, joined, tensors"),
        (file(short=True), "other types"),
        (file(short=4097), "short planes of a length out of range"),
        (file(line(), joined=[1]), "other joined sections"),
        (file(line(sections=[]), short=5, joined=[4, 4, 4, -4]), "other joined sections"),
        (file(line(sections=[]), short=5, joined=[4, 4, 4, 5]), "beyond the end"),
        (file(line(sections=[]), short=5, joined=[5, 4, 4, 3]), "longer than its content"),
        (file(line(places=["bytes", 1, 1], sections=[1, 1, 1, 1, 1]), body=b"\4" + bytes(4)),
         "beyond the end of its tensor"),
        (file(line(shape=[999], places=["bytes", 1, 2], sections=[2, 1, 1, 1, 1]),
              body=b"\4\xff" + bytes(4)), "without an end"),
        (file(line(shape=[999], places=["bytes", 1, 2], sections=[2, 1, 1, 1, 1]),
              body=b"\4\0" + bytes(4)), "2 gaps for 1"),
        (file(line(shape=[4, 1], rows=["mask", 1], sections=[1, 1, 1, 1, 1]), body=bytes(5)),
         "0 bits set for 1"),
        (WHOLE[:8] + b"\3" + WHOLE[9:], "format 3"),
        (build(*parts(PLAIN), version=1), "a tensor of another version than the file's"),
        (file(gaps([4], 1, 0, 5, 1, 0, 1, 1, 1, 1), body=b"\x10" + bytes(4)), "beyond the end of"),
        (file(gaps([4], 1, 0, 1, 1, 0, 1, 1, 1, 1), body=b"\x03" + bytes(4)), "bits beyond"),
        (file(gaps([4], 1, 0, 3, 1, 0, 1, 1, 1, 1), body=b"\x02" + bytes(4)), "without an end"),
    ],
)  # fmt: skip
def test_the_error_says_what_is_broken(tmp_path, data, what):
    assert what in error_of(tmp_path, data)


def test_a_copy_must_be_of_the_same_kind_and_of_a_stored_tensor(tmp_path):
    assert list(unpack(file(line(), copy_of(0))).state_dict) == ["w", "c"]
    other = copy_of(0, shape=[2, 2])
    assert "same as a tensor of another kind" in error_of(tmp_path, file(line(), other))
    again = copy_of(1, name="d")
    assert "a copy of a copy" in error_of(tmp_path, file(line(), copy_of(0), again))
