"""What the ONNX files of sparse networks are: exact, how small, how fast.

    python benchmarks/exports.py --data-dir DIR --work FOLDER [--only PART]

Four parts: the size of self-expanding files on the shapes of ResNet-50 beside the information
bound; LeNet-5 at 125× trained three ways, without its dead units; residual networks that are
sparse at random, with statistics of BatchNorm at random, against the networks they came from; and
the times of a batch. Checkpoints already in FOLDER are used again. Writes
benchmarks/results/exports.json and .md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torchvision
from onnx import numpy_helper
from tables import FOLDER, table, write
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpss_cli.export.compaction.compact import compact
from lpss_cli.export.onnx.export import export_onnx, serialize, to_onnx
from lpss_cli.export.onnx.runtime import run_onnx
from lpss_cli.export.onnx.sparse_encoding import encode_weights, expand_weights, round_weights
from lpss_cli.export.options import ExportOptions, OnnxOptions
from lpss_cli.jobs import training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.export import export_file
from lpss_cli.models import build
from lpss_cli.reporting.sizes import entropy
from lpss_cli.sparsity.prunable import prunable_weights

OUT = FOLDER / "exports.json"
SPARSITIES = (0.9, 0.95, 0.99)
# Name → method and the options that are not the defaults; those of gmp as tuned for LeNet-300.
LENETS: dict[str, tuple[str, dict]] = {
    "lpss": ("lpss", {}),
    "gsm": ("gsm", {}),
    "gmp, lr 0.2, decay 0.0005": ("gmp", {"lr": 0.2, "weight_decay": 0.0005}),
}
PARTS = ("resnet50", "residual", "lenet5")
RESIDUAL = {"resnet20": (3, 32, 32), "wrn18": (1, 28, 28)}
MEGA = 1e6
LENET_HEAD = (
    "training", "live shapes", "parameters", "fewer", "predictions changed", "max. difference",
    "dense / self-expanding file, kB", "pack fp16 / clean / int8 clean, kB",
    "accuracy fp32 / int8", "batch 1, all units / live / int8", "batch 64",
)  # fmt: skip


def cut(model: nn.Module, sparsity: float) -> None:
    """Zero the smallest magnitudes of all prunable weights together."""
    weights = [w.tensor.data for w in prunable_weights(model).values()]
    flat = torch.cat([w.abs().flatten() for w in weights])
    threshold = flat.kthvalue(round(sparsity * len(flat))).values
    for weight in weights:
        weight[weight.abs() <= threshold] = 0


def resnet50(sparsity: float) -> dict[str, float]:
    """Sizes in bytes of the dense and the self-expanding files, and the bound."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    for weight in prunable_weights(model).values():
        nn.init.kaiming_normal_(weight.tensor)
    cut(model, sparsity)
    x = torch.randn(2, 3, 64, 64)
    dense = to_onnx(model, x)
    folded = encode_weights(dense)
    names = set(expand_weights(folded))
    arrays = {t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}
    same = all((array == arrays[name]).all() for name, array in expand_weights(folded).items())
    outputs = run_onnx(serialize(folded), x)
    bound = sum(a.nbytes for name, a in arrays.items() if name not in names)
    for name in names:
        array = arrays[name]
        kept = int((array != 0).sum())
        bound += array.size * entropy(kept / array.size) / 8 + 4 * kept
    return {
        "sparsity": sparsity,
        "dense": dense.ByteSize(),
        "gaps": folded.ByteSize(),
        "gaps fp16": encode_weights(dense, "fp16").ByteSize(),
        "bound": bound,
        "weights equal": same,
        "outputs equal": outputs.equal(run_onnx(serialize(round_weights(dense, "fp32")), x)),
    }


def lenet5(method: str, options: dict, data_dir: str, work: Path) -> dict[str, object]:
    """Train LeNet-5 at 125× on MNIST, five epochs, and export it in every form."""
    data = {"data_dir": data_dir}
    path = work / f"{'_'.join(['lenet5', method, *map(str, options.values())])}.pt"
    if not path.exists():
        request = Request(
            path, data="mnist", data_overrides=data, arch="lenet5", method=method,
            options=options, sparsity=1 - 1 / 125, epochs=5, precision="bf16",
        )  # fmt: skip
        training_job.train(request)
    found: dict[str, object] = {}
    for encoding in ("dense", "gaps"):
        onnx = OnnxOptions(encoding=encoding, int8=encoding == "dense")
        found[encoding] = described(path, data, ExportOptions(("onnx",), onnx=onnx))
    for clean in (False, True):
        for values in ("fp16", "int8"):
            (packed,) = described(path, data, ExportOptions(("pack",), values, clean=clean))
            found[f"pack {values}{' clean' if clean else ''}"] = packed
    return found


def described(path: Path, data: dict[str, str], options: ExportOptions) -> list[dict[str, object]]:
    """Export to nowhere in particular; what is said of each file, without its place."""
    with tempfile.TemporaryDirectory() as folder:
        files = export_file(path, Request(path, data_overrides=data), options, Path(folder))
    found = [file.to_dict() for file in files]
    for facts in found:
        facts["path"] = Path(facts["path"]).name
        for row in facts["latency"]:
            row["network"] = Path(row["network"]).name
    return found


def disturb(model: nn.Module) -> None:
    """Zero 95 % of all weights and two rows of five, and draw BatchNorm's statistics."""
    for weight in prunable_weights(model).values():
        weight.tensor.data[torch.rand_like(weight.tensor) < 0.95] = 0
        weight.tensor.data[torch.rand(len(weight.tensor)) < 0.4] = 0
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


@torch.no_grad()
def residual(name: str) -> dict[str, object]:
    """Largest output difference of the compacted network and of its ONNX file; parameters."""
    torch.manual_seed(0)
    model = build(name, RESIDUAL[name], 10).eval()
    disturb(model)
    x: Tensor = torch.randn(1000, *RESIDUAL[name])
    expected, found = model(x), compact(model, x[:2])
    off = float((found.model(x) - expected).abs().max() / expected.abs().max())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        file = export_onnx(found.model, x, path, reference=expected, labels=True)
    return {
        "parameters": found.savings.parameters,
        "multiply_adds": found.savings.multiply_adds,
        "torch difference": off,
        "onnx difference": file.largest_difference,
        "changed": file.changed,
        "inputs": len(x),
    }


def text(found: dict) -> str:
    """All tables."""
    return "\n\n".join(
        [
            "Self-expanding ONNX on the shapes of ResNet-50 (Kaiming-normal weights, global cut), "
            "MB.",
            _sizes(found["resnet50"]),
            "LeNet-5 on MNIST at 125×, five epochs, without its dead units. Times in ms, one "
            "thread.",
            table(LENET_HEAD, [_lenet_row(name, runs) for name, runs in found["lenet5"].items()]),
            "Sparse at random (95 % zeros, two rows of five zero), BatchNorm at random.",
            _residuals(found["residual"]),
        ]
    )


def _sizes(rows: list[dict]) -> str:
    head = ["zeros", "dense file", "self-expanding, fp32", "bound, fp32", "× bound", "fp16",
            "same bits"]  # fmt: skip
    cells = [
        [f"{r['sparsity']:.0%}", f"{r['dense'] / MEGA:.2f}", f"{r['gaps'] / MEGA:.3f}",
         f"{r['bound'] / MEGA:.3f}", f"{r['gaps'] / r['bound']:.3f}",
         f"{r['gaps fp16'] / MEGA:.3f}", str(r["weights equal"] and r["outputs equal"])]
        for r in rows
    ]  # fmt: skip
    return table(head, cells)


def _residuals(found: dict[str, dict]) -> str:
    head = ["network", "parameters", "multiply-adds", "max. difference, PyTorch / ONNX",
            "predictions changed"]  # fmt: skip
    cells = [
        [name, f"{r['parameters'][0]:,} → {r['parameters'][1]:,}",
         f"{r['multiply_adds'][0]:,} → {r['multiply_adds'][1]:,}",
         f"{r['torch difference']:.1e} / {r['onnx difference']:.1e}",
         f"{r['changed']} of {r['inputs']:,}"]
        for name, r in found.items()
    ]  # fmt: skip
    return table(head, cells)


def _lenet_row(name: str, runs: dict) -> list[str]:
    dense, int8 = runs["dense"]
    (gaps,) = runs["gaps"]
    old, new = dense["savings"]["parameters"]
    shapes = "-".join(str(layer["after"]["shape"][0]) for layer in dense["savings"]["layers"][:3])
    rows = [*dense["latency"], *int8["latency"]]
    times = [
        " / ".join(f"{row['median']:.3g}" for row in rows if row["batch"] == batch)
        for batch in (1, 64)
    ]
    scores = " / ".join(f"{100 * file['metrics']['accuracy']:.2f}" for file in (dense, int8))
    sizes = f"{dense['bytes'] / 1e3:.1f} / {gaps['bytes'] / 1e3:.1f}"
    kinds = ("pack fp16", "pack fp16 clean", "pack int8 clean")
    packs = " / ".join(f"{runs[kind]['bytes'] / 1e3:.2f}" for kind in kinds)
    return [
        name, shapes, f"{old:,} → {new:,}", f"{old / new:.1f}×",
        f"{dense['changed']} of {dense['compared']:,}", f"{dense['largest_difference']:.1e}",
        sizes, packs, scores, *times,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=PARTS, help="measure this part, keep the others")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found: dict = json.loads(OUT.read_text()) if arguments.only else {}
    if arguments.only in (None, "resnet50"):
        found["resnet50"] = [resnet50(sparsity) for sparsity in SPARSITIES]
    if arguments.only in (None, "residual"):
        found["residual"] = {name: residual(name) for name in RESIDUAL}
    if arguments.only in (None, "lenet5"):
        found["lenet5"] = {
            name: lenet5(method, options, arguments.data_dir, arguments.work)
            for name, (method, options) in LENETS.items()
        }
    command = "`python benchmarks/exports.py --data-dir DIR --work FOLDER`"
    write(OUT, found, command, text(found))
    print(text(found))


if __name__ == "__main__":
    main()
