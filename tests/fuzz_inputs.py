"""A mutation fuzzer over what is read beside checkpoints: ``python fuzz_inputs.py FOLDER COUNT``.

Packed files, saved states, recipes, tables, arrays, starts of two numbers a layer, ONNX files to
verify, files that are read a tensor at a time. Every one must be read or refused with an
``InputError`` of two lines.
"""

from __future__ import annotations

import json
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import STATE
from faults import kinds as checkpoints
from fuzz import mutated

from lpss_cli import data
from lpss_cli.checkpoints import loading, packed
from lpss_cli.checkpoints.training_state import TrainingStateFiles
from lpss_cli.errors import InputError
from lpss_cli.export.onnx import runtime
from lpss_cli.jobs import recipes, ternary_init
from lpss_cli.reporting.report import report

_RECIPE = """
title = "an example"
[train]
arch = "mlp:64-30-10"
data = "digits"
epochs = 2
lr = 0.1
[sparsify]
sparsity = 0.9
p = ["fc*=1.2", "1.15"]
"""


def _load(name: Path) -> Any:
    found = data.load(
        data.DataSpec.from_dict(
            {"name": str(name), "target": "outcome"}
            if name.suffix == ".csv"
            else {"name": str(name)}
        )
    )
    return next(found.train.batches(4))


def _run_onnx(path: Path) -> Any:
    return runtime.run_foreign_onnx(path, torch.zeros(2, 6))


def _onnx(path: Path) -> None:
    import onnx

    tensors = [
        onnx.numpy_helper.from_array(np.ones((6, 3), np.float32), "w"),
    ]
    node = onnx.helper.make_node("MatMul", ["input", "w"], ["out"])
    kinds = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 6]), ("out", ["n", 3]))
    ]
    graph = onnx.helper.make_graph([node], "g", kinds[:1], kinds[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def sources(folder: Path) -> dict[str, tuple[str, bytes, Callable[[Path], Any]]]:
    """Kind → the name of its file, a sound content, and what reads it."""
    meta = {"arch": "mlp:6-4-3", "weights": {"fc1.weight": {"row_dim": 0}}}
    (folder / "a.lpss").write_bytes(packed.pack(STATE, meta, "fp16"))
    saved = TrainingStateFiles(folder / "s.pt")
    saved.write({"identity": {"a": 1}, "state": STATE, "measured": {}, "circumstances": {}})
    rows = [f"{i / 7:.3f},{i % 5},{'yes' if i % 3 else 'no'}" for i in range(60)]
    (folder / "t.csv").write_text("a,b,outcome\n" + "\n".join(rows) + "\n")
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 6), np.float32), generator.integers(0, 3, 40)
    np.savez(folder / "n.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    start = ternary_init.derive({"fc1.weight": STATE["fc1.weight"]}, {"arch": "mlp:6-4-3"})
    ternary_init.save(folder / "i.safetensors", start)
    (folder / "r.toml").write_text(_RECIPE)
    _onnx(folder / "m.onnx")
    (folder / "e.safetensors").write_bytes(checkpoints(folder)["export"])
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "pack": ("a.lpss", loading.read),
        "state": (
            "s.pt.partial",
            lambda p: TrainingStateFiles(p.with_suffix("")).read(lambda _: None),
        ),
        "table": ("t.csv", _load),
        "arrays": ("n.npz", _load),
        "start": ("i.safetensors", ternary_init.load),
        "recipe": ("r.toml", lambda p: recipes.read(str(p)).options("train")),
        "onnx": ("m.onnx", _run_onnx),
        "stream": ("e.safetensors", lambda p: report(loading.browse(p)).to_dict()),
    }
    return {
        kind: (name, (folder / name).read_bytes(), reader)
        for kind, (name, reader) in readers.items()
    }


def main(folder: Path, count: int, seed: int) -> None:
    """Read ``count`` mutated inputs and print what came of them as JSON."""
    made = sources(folder)
    warnings.simplefilter("error")
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, kinds = 0.0, sorted(made)
    for kind, (name, _, reader) in made.items():
        reader(folder / name)  # sound as they are
        outcomes[f"{kind} read"] = 0
    for index in range(count):
        kind = kinds[index % len(kinds)]
        name, content, reader = made[kind]
        path = folder / name
        path.write_bytes(mutated(content, made[rng.choice(kinds)][1], rng))
        began = time.process_time()
        try:
            reader(path)
            outcomes[f"{kind} read"] += 1
        except InputError as error:
            outcomes[f"{kind} refused"] += 1
            if not error.what or not error.do or "\n" in error.what:
                wrong.append(f"{kind} #{index}: {error.what!r}")
        except Exception:
            wrong.append(f"{kind} #{index}: {traceback.format_exc()[-1500:]}")
            (folder / f"wrong-{kind}-{index}.bin").write_bytes(path.read_bytes())
        slowest = max(slowest, time.process_time() - began)
    print(json.dumps({"inputs": count, "outcomes": outcomes, "wrong": len(wrong),
                      "first": wrong[:3], "slowest": slowest}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
