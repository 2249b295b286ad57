"""A mutation fuzzer over all kinds of input: ``python fuzz.py FOLDER COUNT [SEED]``.

Every input must be read or refused with an ``InputError``; memory is limited by the system to 1 GiB
beyond what the imports take. Half of the mutations break a file from outside; the other half
change what lies behind its checksums and then mend those.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from faults import CONTAINERS, archive, command, kinds

from lpss_cli.checkpoints.loading import read
from lpss_cli.cli.views import report as views
from lpss_cli.errors import LpssError
from lpss_cli.reporting.report import report
from lpss_cli.utils import digest

_GIB = 1 << 30
_NUMBERS = (0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Break a file: flips, cuts, splices, insertions, numbers at the ends of their ranges."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(7)
        if kind == 0 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1 and content:
            content[place % len(content)] = rng.randrange(256)
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            start = rng.randrange(len(other))
            content[place:] = other[start : start + rng.randrange(1, 4096)]
        elif kind == 4:
            content[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 16)))
        elif kind == 5:
            size = rng.choice((2, 4, 8))
            content[place : place + size] = (rng.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(
                size, rng.choice(("little", "big"))
            )
        else:
            del content[place : place + rng.randrange(1, 64)]
    return bytes(content)


def inside(name: str, data: bytes, rng: random.Random) -> bytes:
    """Change what lies behind a file's checksums, and mend them."""
    if name == "safetensors" or name == "export":
        size = int.from_bytes(data[:8], "little")
        header = mutated(data[8 : 8 + size], data, rng)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    if name == "legacy":
        return mutated(data[:400], data, rng) + data[400:]
    if name == "artifact" and rng.random() < 0.5:
        return odd_record(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        members = {i.filename.split("/", 1)[1]: source.read(i) for i in source.infolist()}
    storages = {n[5:]: m for n, m in members.items() if n.startswith("data/")}
    if rng.random() < 0.3:
        key = rng.choice(sorted(storages))
        storages[key] = storages[key][: rng.randrange(len(storages[key]) + 1)]
    else:
        members["data.pkl"] = mutated(members["data.pkl"], data, rng)
    wrap: Callable[..., bytes] = archive if rng.random() < 0.95 else CONTAINERS["bare"]
    return wrap(members["data.pkl"], **storages) if wrap is archive else members["data.pkl"]


def odd_record(data: bytes, rng: random.Random) -> bytes:
    """An artifact whose record says something odd, sealed as if we had written it."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    keys = ("arch", "data", "data_name", "metrics", "settings", "versions", "weights", "history",
            "command", "preprocessing", "classes", "method", "input_shape", "outputs", "notes",
            "format", "source", "x")  # fmt: skip
    for _ in range(rng.randrange(1, 4)):
        content["lpss"][rng.choice(keys)] = odd_value(rng, 3)
    parts = {"state_dict": content["state_dict"], "init": None}
    record = {k: v for k, v in content["lpss"].items() if k != digest.MANIFEST_KEY}
    with contextlib.suppress(TypeError, RecursionError, ValueError):
        content["lpss"] = digest.seal_record(record, parts)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def odd_value(rng: random.Random, depth: int) -> object:
    """Any value of any kind that a record may hold, and some that it may not."""
    simple = (None, True, -1, 0, 2**63, 2**70, 1e308, float("nan"), "", "digits", "mlp:6-4-3",
              "mlp:6-999999999999-3", "\x1b[31m", "[bold]", "\u202e", "fc1.weight", "x" * 5000,
              "../../etc", "net.py:make", torch.ones(2), b"bytes")  # fmt: skip
    if depth and rng.random() < 0.5:
        if rng.random() < 0.5:
            return [odd_value(rng, depth - 1) for _ in range(rng.randrange(4))]
        names = ("name", "after", "accuracy", "fc1.weight", "p", "row_dim", "seed", "workers", "on")
        return {rng.choice(names): odd_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice(simple)


def examine(path: Path, full: bool, out: Path) -> str:
    """Read a file as the commands do; return what came of it."""
    try:
        found = report(read(path))
        json.dumps(found.to_dict())
        views.csv_text([found])
        views.origin_table(found)
    except LpssError as error:
        outcome = "refused" if error.what and error.do else "refused without a word"
    else:
        outcome = "read"
    if full:
        for name in ("json", "report", "plan", "eval", "export", "ticket"):
            code, _, err = command(name, path, out)
            assert code in (0, 1, 2), err
            assert "Traceback" not in err
    return outcome


def main(folder: Path, count: int, seed: int) -> None:
    """Examine ``count`` inputs and print what happened as JSON."""
    sources = kinds(folder)
    warnings.simplefilter("error")
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + _GIB, before + _GIB))
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, names = 0.0, sorted(sources)
    path, out = folder / "input.pt", folder / "out"
    out.mkdir(exist_ok=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        name = names[index % len(names)]
        data = sources[name]
        other = sources[rng.choice(names)]
        outside = index // len(names) % 2
        content = mutated(data, other, rng) if outside else inside(name, data, rng)
        path.write_bytes(content)
        began = time.process_time()
        try:
            outcome = examine(path, index % 20 == 0, out)
            outcomes[f"{name} {outcome}"] += 1
        except Exception:
            wrong.append(f"{name} #{index}: {traceback.format_exc()[-1500:]}")
            (folder / f"wrong-{index}.bin").write_bytes(content)
        slowest = max(slowest, time.process_time() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    print(json.dumps({"inputs": count, "outcomes": outcomes, "wrong": len(wrong),
                      "first": wrong[:3], "slowest": slowest, "grown": grown}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
