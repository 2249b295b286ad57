"""Broken and hostile files for tests, and the command line as one function."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import typer
from safetensors.torch import save as to_safetensors

from lpss_cli.checkpoints import artifact
from lpss_cli.cli import app
from lpss_cli.utils import digest as manifest

STATE = {
    "fc1.weight": torch.linspace(-1, 1, 24).view(4, 6),
    "fc1.bias": torch.zeros(4),
    "fc2.weight": torch.tensor([[0.0, 1.0, 0.0, -2.0]] * 3),
    "fc2.bias": torch.ones(3),
}
#: Of processes that import the package.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
#: Every command that reads a checkpoint; {file} and {out} are put in.
COMMANDS = {
    "report": "report {file}",
    "csv": "report --csv {file}",
    "html": "report {file} --html {out}/r.html --force",
    "json": "report --json {file}",
    "plan": "plan {file}",
    "eval": "eval {file}",
    "export": "export {file} --out-dir {out} --force",
    "sparsify": "sparsify {file} --out {out}/o.pt --force --epochs 0",
    "ticket": "ticket {file} --out {out}/o.pt --force --epochs 0",
    "verify": "verify {file} {file}",
    "init": "init {file} --out {out}/o.toml --force",
}


# Made once: typer makes it anew for every call, which is most of the time of a refusal.
_PARSER = typer.main.get_command(app.app)


def lpss(*args: object) -> tuple[int, str, str]:
    """Run the command line here; returns exit code, stdout and stderr."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["lpss", *map(str, args)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(app, "app", _PARSER),
        ):
            app.main()
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("main returned")


def command(name: str, file: Path, out: Path) -> tuple[int, str, str]:
    """Run one of ``COMMANDS``, or unpack, which packs alone are for; paths may hold spaces."""
    words = COMMANDS.get(name, "unpack {file} --out {out}/o.pt --force").split()
    return lpss(*(word.format(file=file, out=out) for word in words))


def two_lines(err: str) -> bool:
    """Whether stderr ends in what is wrong and what to do, and nothing like a traceback."""
    lines = [line for line in err.splitlines() if not line.startswith(("Warning:", "reading "))]
    return (
        len(lines) == 2
        and lines[0].startswith("Error: ")
        and lines[1].startswith("  ")
        and "Traceback" not in err
        and "weights_only" not in err  # torch's own advice to load unsafely
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def archive(pickled: bytes, **members: bytes) -> bytes:
    """A zip archive as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("archive/data.pkl", pickled)
        written.writestr("archive/byteorder", b"little")
        for name, data in members.items():
            written.writestr(f"archive/data/{name}", data)
        written.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def legacy(pickled: bytes, storages: bytes = pickle.dumps([], 2)) -> bytes:
    """A file of PyTorch before 1.6 around any pickle."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + storages


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor_pickle(
    shape: tuple[int, ...], stride: tuple[int, ...], count: int, *, old: bool = False,
    offset: int = 0, storage: str = "FloatStorage",
) -> bytes:  # fmt: skip
    """The pickle of ``{"w": tensor}`` with sizes that need not be true."""
    view = b"N" if old else b""
    numbers = [b"(" + b"".join(map(number, each)) + b"t" for each in (shape, stride)]
    return (
        b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + number(count) + view + b"tQ"
        + number(offset) + numbers[0] + numbers[1] + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


CONTAINERS = {"zip": archive, "legacy": legacy, "bare": bytes}


def saved(content: object, **options: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def forged(path: Path, state: dict[str, torch.Tensor], record: dict[str, object]) -> Path:
    """An artifact as somebody with lpss's code could make it: a true manifest, any record."""
    sealed = manifest.seal_record(record, {"state_dict": state, "init": None})
    torch.save({"lpss": sealed, "state_dict": state}, path)
    return path


def kinds(folder: Path) -> dict[str, bytes]:
    """One sound small file of every kind that is read."""
    artifact.save(folder / "a.pt", STATE, {"arch": "mlp:6-4-3", "seed": 3, "notes": ["n"]})
    code, _, err = lpss("export", folder / "a.pt", "--format", "safetensors")
    assert code == 0, err
    return {
        "torch": saved(STATE),
        "legacy": saved(STATE, _use_new_zipfile_serialization=False),
        "safetensors": to_safetensors(STATE, {"format": "pt"}),
        "artifact": (folder / "a.pt").read_bytes(),
        "export": (folder / "a.safetensors").read_bytes(),
    }


HOLDER = """
import sys, time
from pathlib import Path
from lpss_cli.utils.files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(120)
"""


@contextlib.contextmanager
def holder(path: object) -> Iterator[None]:
    """Another process that is writing ``path``, killed when the block ends."""
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()
