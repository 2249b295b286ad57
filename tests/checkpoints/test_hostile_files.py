"""Files that ask for more memory than they hold, and files with malicious texts."""

from __future__ import annotations

import csv
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from faults import (
    COMMANDS,
    STATE,
    archive,
    command,
    forged,
    legacy,
    lpss,
    saved,
    tensor_pickle,
    two_lines,
)
from safetensors.torch import save as to_safetensors

from lpss_cli.checkpoints import pickle_scan
from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.metadata import drop_invalid
from lpss_cli.errors import InputError


def assert_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Check that every command refuses the file in two lines."""
    path = tmp_path / "f.pt"
    path.write_bytes(content)
    for name in COMMANDS:
        code, _, err = command(name, path, tmp_path)
        assert (code, two_lines(err)) == (2, True), err
        assert message in err, err
        assert "weights_only" not in err


BIG = 2**40
SIZES = {
    "storage larger than its record": ((BIG,), (1,), BIG, 0),
    "shape larger than its storage": ((BIG,), (1,), 2, 0),
    "stride beyond its storage": ((2,), (BIG,), 2, 0),
    "offset beyond its storage": ((2,), (1,), 2, BIG),
    "offset by one": ((2,), (1,), 2, 1),
    "expanded without end": ((BIG, BIG), (0, 0), 2, 0),
    "rows of nothing": ((BIG, 0), (1, 1), 2, 0),
    "negative": ((-2,), (1,), 2, 0),
    "not a number": ((2,), (1,), -2, 0),
}


@pytest.mark.parametrize("case", SIZES)
def test_tensors_that_need_more_than_the_file_holds(tmp_path, case):
    shape, stride, count, offset = SIZES[case]
    new = tensor_pickle(shape, stride, count, offset=offset)
    assert_refused(tmp_path, archive(new, **{"0": bytes(8)}), "cannot be read")
    old = tensor_pickle(shape, stride, count, offset=offset, old=True)
    storages = pickle.dumps(["0"], 2) + struct.pack("<q", count) + bytes(8)
    assert_refused(tmp_path, legacy(old, storages), "cannot be read")


def test_the_same_pickles_with_correct_sizes_are_read(tmp_path):
    path = tmp_path / "f.pt"
    path.write_bytes(archive(tensor_pickle((2,), (1,), 2), **{"0": struct.pack("<2f", 1, 2)}))
    assert read(path).state_dict["w"].tolist() == [1, 2]
    storages = pickle.dumps(["0"], 2) + struct.pack("<q2f", 2, 1, 2)
    path.write_bytes(legacy(tensor_pickle((2,), (1,), 2, old=True), storages))
    assert read(path).state_dict["w"].tolist() == [1, 2]


def test_one_storage_with_two_sizes(tmp_path):
    one, two = tensor_pickle((2,), (1,), 2)[2:-1], tensor_pickle((4,), (1,), 4)[2:-1]
    assert_refused(
        tmp_path, archive(b"\x80\x02" + one + two + b"\x86.", **{"0": bytes(16)}), "two sizes"
    )


def rezipped(content: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(out, "w", compression) as target,
    ):
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
        for name, data in more.items():
            target.writestr(name, data)
    return out.getvalue()


def test_archives_that_torch_save_does_not_write(tmp_path):
    whole = saved(STATE)
    assert_refused(
        tmp_path, rezipped(saved({"w": torch.zeros(10**6)}), zipfile.ZIP_DEFLATED), "compressed"
    )
    assert_refused(tmp_path, rezipped(whole, **{"archive/DATA.pkl": b"x"}), "one name")
    assert_refused(tmp_path, rezipped(whole, **{"other/x": b"x"}), "outside archive/")
    assert_refused(
        tmp_path, rezipped(whole, **{"archive/constants.pkl": b"x"}), "torch.jit.load(FILE)"
    )
    assert_refused(tmp_path, whole[:4] + bytes(100) + whole[104:], "cannot be read")
    overlapping = bytearray(whole)
    directory = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", directory + 4)
    third = whole.index(b"PK\x01\x02", second + 4)
    overlapping[third + 42 : third + 46] = whole[second + 42 : second + 46]
    assert_refused(tmp_path, bytes(overlapping), "cannot be read")
    path = tmp_path / "f.pt"
    path.write_bytes(rezipped(whole))  # a faithful copy is read
    assert set(read(path).state_dict) == set(STATE)


def test_one_changed_byte_of_a_tensor_is_noticed(tmp_path):
    whole = saved({"w": torch.full((100,), 7.0)})
    place = whole.index(struct.pack("<f", 7.0) * 50)
    broken = bytearray(whole)
    broken[place] ^= 1
    torch.load(io.BytesIO(broken), weights_only=True)  # PyTorch does not notice
    assert_refused(tmp_path, bytes(broken), "Bad CRC-32")


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02" + b"}" * 60_000 + b".", "instructions"),
        (b"\x80\x02" + b"\x85" * 10 + b".", "damaged"),
        (
            b"\x80\x02}" + b")" + b"\x85" * 40_000 + b"K\x01s.",
            "damaged",
        ),  # a key that must not be hashed
        (b"\x80\x02]q\x00h\x00a.", "not a state_dict"),  # a list within itself
        (b"\x80\x04\x95" + bytes(8) + b"}.", "FRAME"),
        (b"\x80\x02c__builtin__\nset\n(]tR.", "not a state_dict"),
        (b"\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "builtins.bytearray"),
        (b"\x80\x02ctorch\nTensor\n(J\xff\xff\xff\x7ftR.", "torch.Tensor"),
    ],
)
def test_pickles_that_would_cost_more_than_their_size(tmp_path, monkeypatch, pickled, message):
    monkeypatch.setattr(pickle_scan, "_MAX_INSTRUCTIONS", 50_000)
    (tmp_path / "f.pt").write_bytes(archive(pickled))
    code, _, err = lpss("report", tmp_path / "f.pt")
    assert (code, two_lines(err)) == (2, True), err
    assert message in err


def header(entries: object, data: bytes = b"", pad: str = "") -> bytes:
    written = (entries if isinstance(entries, str) else json.dumps(entries)) + pad
    return struct.pack("<Q", len(written.encode())) + written.encode() + data


def entry(shape: list[object], begin: object, end: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


W = entry([2], 0, 8)
HEADERS = {
    "over 10 MB": (header({"w": W}, bytes(8), " " * 10_000_001), "header is"),
    "longer than the file": (struct.pack("<Q", 2**62) + b"{}", "header is"),
    "cut": (header({"w": W}, bytes(8))[:30], "ends within its header"),
    "one name twice": (header('{"w": %s, "w": %s}' % ((json.dumps(W),) * 2), bytes(8)), "twice"),
    "overlap": (header({"v": W, "w": entry([2], 4, 12)}, bytes(12)), "overlap"),
    "hole": (header({"v": W, "w": entry([2], 12, 20)}, bytes(20)), "overlap, or"),
    "rest": (header({"w": W}, bytes(9)), "do not cover"),
    "beyond the end": (header({"w": W}, bytes(4)), "do not cover"),
    "backwards": (header({"w": entry([2], 8, 0)}, bytes(8)), "do not fit"),
    "overflow": (header({"w": entry([2**61, 8], 0, 0)}), "do not fit"),
    "too large for its bytes": (header({"w": entry([3], 0, 8)}, bytes(8)), "do not fit"),
    "rows of nothing": (header({"w": entry([2**40, 0], 0, 0)}), "impossible shape"),
    "unknown dtype": (header({"w": entry([2], 0, 8, "X9")}, bytes(8)), "unknown dtype"),
    "dtype no text": (header({"w": entry([2], 0, 8, [])}, bytes(8)), "unknown dtype"),
    "negative": (header({"w": entry([-2], 0, 8)}, bytes(8)), "not whole numbers"),
    "fraction": (header({"w": entry([2.0], 0, 8)}, bytes(8)), "not whole numbers"),
    "truth": (header({"w": entry([True], 0, 4)}, bytes(4)), "not whole numbers"),
    "no tensor": (header({"w": 1}), "does not describe a tensor"),
    "more keys": (header({"w": {**W, "x": 1}}, bytes(8)), "does not describe a tensor"),
    "no object": (struct.pack("<Q", 2) + b"{]", "damaged"),
    "nested": (header('{"w":' + "[" * 100_000), "damaged"),
    "not text": (struct.pack("<Q", 3) + b"{\xff}", "damaged"),
    "metadata no texts": (header({"__metadata__": {"a": 1}, "w": W}, bytes(8)), "not text"),
    "metadata no object": (header({"__metadata__": 3, "w": W}, bytes(8)), "not text"),
    "no tensors": (header({}), "no state_dict"),
    "100,001 tensors": (
        header({f"t{i}": entry([0], 0, 0) for i in range(100_001)}), "100,001 tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers_that_break_a_rule(tmp_path, case):
    content, message = HEADERS[case]
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    code, _, err = lpss("report", path)
    assert (code, two_lines(err)) == (2, True), err
    assert message in err


def test_a_correct_header_is_read(tmp_path):
    (tmp_path / "f").write_bytes(header({"w": W}, struct.pack("<2f", 1, 2), "  "))
    assert read(tmp_path / "f").state_dict["w"].tolist() == [1, 2]


PROBE = """
import resource, sys
from pathlib import Path
from lpss_cli.errors import InputError
from lpss_cli.checkpoints.loading import read
read(Path(sys.argv[1]))
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**28, size + 2**28))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    try:
        read(Path(name))
        print("read", name)
    except InputError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_refusing_a_file_takes_no_memory(tmp_path):
    names = []
    for index, (shape, stride, count, offset) in enumerate(SIZES.values()):
        new = tensor_pickle(shape, stride, count, offset=offset)
        old = tensor_pickle(shape, stride, count, offset=offset, old=True)
        storages = pickle.dumps(["0"], 2) + struct.pack("<q", count) + bytes(8)
        for kind, content in (("n", archive(new, **{"0": bytes(8)})), ("o", legacy(old, storages))):
            names.append(tmp_path / f"{kind}{index}")
            names[-1].write_bytes(content)
    bomb = rezipped(saved({"w": torch.zeros(25_000_000)}), zipfile.ZIP_DEFLATED)
    names.append(tmp_path / "bomb")
    names[-1].write_bytes(bomb)  # 100 MB in 100 kB
    (tmp_path / "sound").write_bytes(saved(STATE))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, tmp_path / "sound", *names],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 2**26


EVIL = "a[bold red]\x1b[31m\n=x\u202e\x9b0m\x07\u2028"


def test_names_from_files_are_printed_escaped(tmp_path):
    state = {EVIL + ".weight": torch.eye(3), "=cmd()|'/c'!A1": torch.eye(2), "b": torch.eye(2) / 0}
    path = tmp_path / "f.pt"
    record = {"arch": EVIL, "command": EVIL, "data_name": EVIL, "method": EVIL,
              "versions": {EVIL: EVIL}, "metrics": {"on": EVIL, "after": {EVIL: 1.0}},
              "settings": {"seed": EVIL}}  # fmt: skip
    forged(path, state, record)
    for name in COMMANDS:
        code, out, err = command(name, path, tmp_path)
        assert code in (0, 2), err
        shown = (out + err).replace("\n", "")
        assert all(c.isprintable() for c in shown), (
            name,
            [c for c in shown if not c.isprintable()],
        )
    _, out, err = command("report", path, tmp_path)
    assert "[bold red]" in out
    assert "\\x1b[31m" in out
    assert "\\u202e" in out
    assert "Warning: " in err
    assert r"b (4)" in err
    _, out, _ = command("json", path, tmp_path)
    assert json.loads(out)["layers"][0]["name"] == EVIL + ".weight"  # JSON has the name unescaped
    _, out, _ = command("csv", path, tmp_path)
    cells = [row[1] for row in csv.reader(io.StringIO(out))]
    assert cells[2] == "'=cmd()|'/c'!A1"
    assert len(out.splitlines()) == 4


def test_names_from_files_in_errors_stay_on_one_line(tmp_path):
    forged(tmp_path / "f.pt", {EVIL: torch.eye(3)}, {"arch": "mlp", "data": {"name": EVIL}})
    for name in ("eval", "export", "sparsify"):
        code, _, err = command(name, tmp_path / "f.pt", tmp_path)
        assert (code, two_lines(err)) == (2, True), err
    (tmp_path / "f.pt").write_bytes(archive(f"c{'x' * 9000}\n\x1b[31m\n.".encode()))
    code, _, err = lpss("report", tmp_path / "f.pt")
    assert (code, two_lines(err)) == (2, True)
    assert "\x1b" not in err
    assert len(err) < 3000


KEYS = ("arch", "data", "data_name", "metrics", "settings", "versions", "weights", "history",
        "command", "preprocessing", "classes", "method", "input_shape", "outputs", "notes",
        "source", "sparsity", "primary_metric", "config", "task", "seconds", "device",
        "histograms")  # fmt: skip
SEARCH = {"primary": "accuracy", "examples": 9, "allowed": 1, "reference": 1, "sparsity": 0.5}
USED = ("arch", "data", "weights", "preprocessing")
VALUES = (7, -1.5, True, "text", "", [], ["x"], [[]], {}, {"name": 3}, {"after": 3},
          {"after": {"accuracy": "high"}}, {"fc1.weight": 3}, {"fc1.weight": {"p": -1}},
          {"fc1.weight": {"row_dim": 9}}, {"none": {}}, {"fc1.bias": {}}, 2**64 - 1, 1e308,
          float("nan"), "x" * 90_000, {"name": "x" * 900}, {"name": "\0"}, {"workers": 10**9},
          {"name": "digits", "image_size": 10**9}, {"name": "digits", "workers": 10**9},
          {"name": "digits", "mean": [1.0, 2.0]}, {"name": "digits", "std": [0.0]},
          {"name": "digits", "augment": "x"}, {"name": "digits", "split_seed": -1})  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_no_record_makes_a_command_crash(tmp_path, key):
    path = tmp_path / "f.pt"
    for value in VALUES:
        record = {"arch": "mlp:6-4-3", "data": {"name": "nowhere.csv"}, key: value}
        forged(path, STATE, record)
        # The table shows every entry; the other commands use fewer.
        for name in ("report", "html", "json", "plan", "eval", "export", "ticket")[
            : 7 if key in USED else 2
        ]:
            code, _, err = command(name, path, tmp_path)
            assert code in (0, 2), (value, name, err)
            assert code == 0 or two_lines("\n".join(err.splitlines()[-2:])), (value, name, err)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("settings", {"layers": ["a=0.5"]}, {"layers": 1.5}),
        ("settings", {"layers": None}, {"layers": [["a"]]}),
        ("search", {**SEARCH, "curve": [{"sparsity": 0.5, "metric": None}]},
         {**SEARCH, "curve": [{"sparsity": 0.5}]}),
    ],
)  # fmt: skip
def test_entries_that_a_report_iterates_over_are_checked(key, good, bad):
    assert drop_invalid({key: good}) == ({key: good}, [])
    assert drop_invalid({key: bad}) == ({}, [key])


@pytest.mark.parametrize(
    "change",
    [{"metrics": None}, {"metrics": {"after": None}}, {"metrics": {"after": {"accuracy": 7}}},
     {"weights": None}, {"weights": {}}, {"weights": {"fc1.weight": {"row_dim": 1, "p": 1.2}}},
     {"settings": None, "versions": None, "history": None, "classes": None, "notes": None},
     {"preprocessing": None, "input_shape": [0], "outputs": 0, "sparsity": -1, "source": None}],
)  # fmt: skip
def test_a_network_is_trained_whatever_its_record_says(tmp_path, change):
    torch.manual_seed(0)
    state = {"fc1.weight": torch.randn(8, 64), "fc1.bias": torch.zeros(8),
             "fc2.weight": torch.randn(10, 8), "fc2.bias": torch.zeros(10)}  # fmt: skip
    state["fc1.weight"][:, ::2] = 0
    record = {"arch": "mlp:64-8-10", "data": {"name": "digits"}, **change}
    path = forged(tmp_path / "f.pt", state, record)
    for words in (
        ("eval", path),
        ("sparsify", path, "--epochs", "0", "--out", tmp_path / "s.pt", "--force"),
        ("export", path, "--format", "safetensors", "--force"),
        ("report", path),
        ("plan", path),
    ):
        code, _, err = lpss(*words)
        assert code == 0 or two_lines("\n".join(err.splitlines()[-2:])), err
        assert code == 0 or words[0] in ("plan", "export"), err


@pytest.mark.parametrize("arch", ["mlp:6-999999999-3", "mlp:6-" + "9" * 900 + "-3",
                                  "mlp:6" + "-1" * 480 + "-3", "lenet5", "vgg19", "nowhere",
                                  "mlp:", "torchvision:resnet18", "timm:hf-hub:a/b"])  # fmt: skip
def test_a_network_named_by_a_file_takes_no_memory_unless_it_fits(tmp_path, arch):
    columns = "a,b,c,d,e,f,y\n" + "".join(f"{i},{i},1,2,3,{i % 7},{i % 3}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(columns)
    data = {"name": "t.csv", "target": "y"}
    forged(tmp_path / "f.pt", STATE, {"arch": arch, "data": data})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("eval", "sparsify", "ticket"):
        code, _, err = command(name, tmp_path / "f.pt", tmp_path)
        assert code == 2, err
        assert two_lines("\n".join(err.splitlines()[-2:])), err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_records_that_are_too_large_are_refused(tmp_path):
    circle: list[object] = []
    circle.append(circle)
    doubled: object = [1]
    for _ in range(40):
        doubled = [doubled, doubled]
    for record in ({"x": circle}, {"x": doubled}, {"x": 2**80}, {3: 4}, {"x": "y" * 5_000_000}):
        assert_refused(tmp_path, saved({"lpss": record, "state_dict": STATE}), "its record")


def test_records_in_safetensors_are_checked_alike(tmp_path):
    for record in ('{"arch": 5}', '{"metrics": 7, "weights": [1]}', "[" * 100_000, '{"x": NaN}',
                   '{"x": 1' + "0" * 5000 + "}", "null"):  # fmt: skip
        path = tmp_path / "f.safetensors"
        path.write_bytes(to_safetensors(STATE, {"lpss": record}))
        for name in ("report", "json", "plan"):
            code, _, err = command(name, path, tmp_path)
            assert code == 0 or two_lines(err), err


def test_names_that_cannot_be_written_are_refused(tmp_path):
    for name in ("\ud800", "x" * 1001, 3):
        torch.save({name: torch.ones(2)}, tmp_path / "f.pt")
        with pytest.raises(InputError, match="no state_dict"):
            read(tmp_path / "f.pt")
