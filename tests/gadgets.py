"""Pickles that run something harmless when they are loaded, and a count of what really ran.

Run as a program: ``python gadgets.py FOLDER`` loads each of them with plain ``pickle`` first, which
must run it (else it proves nothing), then feeds it to every reading command in every container.
An audit hook sees whatever Python does: only events that carry ``TOKEN`` count.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import marshal
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKEN = "lpss_payload"
MARK = f"open({TOKEN!r}, 'w').close()"
hits: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: keep events of our payloads."""
    if event.startswith(("object.", "sys._getframe", "code.__new__")):
        return
    if TOKEN in repr(arguments) or (event == "exec" and _runs_payload(arguments[0])):
        hits.append(event)


def _runs_payload(code: Any) -> bool:
    return TOKEN in repr(getattr(code, "co_consts", "")) and code.co_filename.startswith("<")


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.parts


def function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


INNER = pickle.dumps(Call(os.system, f"true {TOKEN}"), 2)
#: Calls: module:function, arguments.
CALLS: dict[str, tuple[Any, ...]] = {
    "os:system": (f"true {TOKEN}",),
    "os:popen": (f"true {TOKEN}",),
    "os:mkdir": (TOKEN,),
    "os:remove": (TOKEN,),
    "os:rename": (TOKEN, TOKEN + "2"),
    "os:listdir": (TOKEN,),
    "os:putenv": (TOKEN, "1"),
    "os:posix_spawn": ("/bin/true", ["true", TOKEN], {}),
    "os:execv": (f"/nowhere/{TOKEN}", [TOKEN]),
    "subprocess:Popen": (["true", TOKEN],),
    "subprocess:call": (["true", TOKEN],),
    "subprocess:check_output": (["true", TOKEN],),
    "subprocess:getoutput": (f"true {TOKEN}",),
    "builtins:exec": (MARK,),
    "builtins:eval": (MARK,),
    "builtins:compile": (MARK, "<payload>", "exec"),
    "builtins:open": (TOKEN, "w"),
    "builtins:__import__": (TOKEN,),
    "importlib:import_module": (TOKEN,),
    "runpy:run_path": (TOKEN,),
    "runpy:run_module": (TOKEN,),
    "cProfile:run": (MARK, TOKEN),
    "pathlib:Path.touch": (Path(TOKEN),),
    "shutil:copyfile": (TOKEN, TOKEN + "2"),
    "shutil:rmtree": (TOKEN,),
    "tempfile:mkdtemp": ("", TOKEN, "."),
    "glob:glob": (f"{TOKEN}*",),
    "socket:getaddrinfo": (f"{TOKEN}.invalid", 1),
    "sqlite3:connect": (TOKEN,),
    "ctypes:CDLL": (f"./{TOKEN}.so",),
    "pickle:loads": (INNER,),
    "torch:load": (TOKEN,),
    "torch.serialization:load": (TOKEN,),
    "zipfile:ZipFile": (TOKEN, "w"),
    "numpy:load": (TOKEN,),
    "numpy:fromfile": (TOKEN,),
    "logging.config:fileConfig": (TOKEN,),
    "urllib.request:urlopen": (f"file:///nowhere/{TOKEN}",),
}


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ARGUMENT = _text(f"true {TOKEN}")
EVAL = _text(MARK)
#: Pickles written by hand, for the ways to a call that no object pickles as.
BY_HAND: dict[str, bytes] = {
    "INST": b"(" + ARGUMENT + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + ARGUMENT + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(](X\x04\x00\x00\x00true" + _text(TOKEN) + b"et\x81"
    b"0csubprocess\nPopen\n(](X\x04\x00\x00\x00true" + _text(TOKEN) + b"etR.",
    "STACK_GLOBAL": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + ARGUMENT + b"\x85R.",
    "dotted": b"\x80\x04" + _text("pathlib") + _text("os.system") + b"\x93" + ARGUMENT + b"\x85R.",
    "posix": b"cposix\nsystem\n(" + ARGUMENT + b"tR.",
    "renamed": b"c__builtin__\neval\n(" + EVAL + b"tR.",
    "python 2": b"ccommands\ngetoutput\n(" + ARGUMENT + b"tR.",
    "import": b"c" + TOKEN.encode() + b"\nnothing\n.",
    "key": b"}cos\nsystem\n(" + ARGUMENT + b"tRK\x01s.",
    "beside tensors": b"}" + _text("w") + b"cos\nsystem\n(" + ARGUMENT + b"tRs.",
    "attribute": b"ccollections\nOrderedDict\n)R}" + _text("_metadata") + b"cos\nsystem\n("
    + ARGUMENT + b"tRsb.",
    "getattr": b"c__builtin__\ngetattr\n(cos\npath\n" + _text("os") + b"tR0"
    b"c__builtin__\neval\n(" + EVAL + b"tR.",
    "state": b"cfunctools\npartial\n(cos\nsystem\ntR(cos\nsystem\n(" + ARGUMENT + b"t}Ntb0"
    b"coperator\nmethodcaller\n(" + _text("__call__") + b"tR0cos\nsystem\n(" + ARGUMENT + b"tR.",
    "map": b"c__builtin__\nlist\n(c__builtin__\nmap\n(cos\nsystem\n](" + ARGUMENT + b"etRtR.",
    "marshal": b"c__builtin__\neval\n(cmarshal\nloads\n(C"
    + bytes([len(marshal.dumps(compile(MARK, "<payload>", "eval")))])
    + marshal.dumps(compile(MARK, "<payload>", "eval")) + b"tRtR.",
}  # fmt: skip


def gadgets() -> dict[str, bytes]:
    """All of them by name."""
    made = {
        name: pickle.dumps(Call(function(name), *arguments), 2) for name, arguments in CALLS.items()
    }
    return made | BY_HAND


def main(folder: Path) -> None:
    """Prove every gadget live, then feed it to every command; print what happened."""
    from faults import COMMANDS, CONTAINERS, command, digest, two_lines

    os.chdir(folder)
    (folder / f"{TOKEN}.py").write_text("")
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    sys.addaudithook(watch)
    dead, executed, wrong, runs = [], [], [], 0
    made = gadgets()
    for name, payload in made.items():
        hits.clear()
        with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
            pickle.loads(payload)
        if not hits:
            dead.append(name)
        sys.modules.pop(TOKEN, None)
    out = folder / "out"
    out.mkdir()
    old = [out / name for name in ("o.pt", "f.safetensors", "f.onnx")]
    for path in old:
        path.write_bytes(b"old")
    before = [digest(path) for path in old]
    commands = [*(name for name in COMMANDS if name not in ("csv", "json", "html")), "unpack"]
    for name, payload in made.items():
        for container, wrap in CONTAINERS.items():
            path = folder / "f.pt"
            path.write_bytes(wrap(payload))
            for word in commands:
                hits.clear()
                code, _, err = command(word, path, out)
                runs += 1
                if hits:
                    executed.append((name, container, word, hits[0]))
                if code != 2 or not two_lines(err):
                    wrong.append((name, container, word, code, err[-300:]))
    same = before == [digest(path) for path in old] and len(list(out.iterdir())) == len(old)
    print(json.dumps({"gadgets": len(made), "runs": runs, "dead": dead, "executed": executed,
                      "wrong": wrong[:5], "outputs unchanged": same}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
