"""Options that commands share, in groups. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli import method as methods
from lpss_cli.cli import completing
from lpss_cli.data.spec import AUGMENTS, KNOWN
from lpss_cli.models import KNOWN as NETWORKS

_RUN, _DATA, _OUTPUT = "Training", "Data and network", "Output"


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """Declare one flag in a panel of the help; the help names its default itself."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


KeepInit = Annotated[
    bool,
    option(
        "--keep-init",
        help="Store the weights that training starts from too, for `lpss ticket`.",
        panel=_OUTPUT,
    ),
]
File = Annotated[Path | None, typer.Argument(help="Checkpoint; default: the newest here.")]
Json = Annotated[bool, option("--json", help="Print one JSON document on stdout.", panel=_OUTPUT)]
Quiet = Annotated[bool, option("--quiet", "-q", help="No notes and no bars.", panel=_OUTPUT)]
Debug = Annotated[bool, option("--debug", help="Show tracebacks.", panel=_OUTPUT)]
Force = Annotated[bool, option("--force", "-f", help="Replace existing outputs.", panel=_OUTPUT)]
Out = Annotated[
    Path | None,
    option(
        "--out", "-o", help="Artefact to write. Default: model.pt, FILE.sparse.pt.", panel=_OUTPUT
    ),
]
DraftTo = Annotated[
    Path | None,
    option("--out", "-o", help="Recipe to write. Default: recipe.toml.", panel=_OUTPUT),
]
UnpackedTo = Annotated[
    Path | None,
    option("--out", "-o", help="File to write. Default: FILE.safetensors.", panel=_OUTPUT),
]
Trust = Annotated[
    bool,
    option("--trust-pickle", help="Unpickle objects; only for files you trust.", panel=_DATA),
]
Arch = Annotated[
    str | None,
    option(
        "--arch",
        help=f"Network: {', '.join(NETWORKS)}, mlp:A-B-C, torchvision:NAME, timm:NAME, "
        "hf:FOLDER, file.py:factory. Default: the checkpoint's own, else recognised; mlp for new "
        "ones.",
        panel=_DATA,
        autocompletion=completing.arch,
    ),
]
DataName = Annotated[
    str | None,
    option(
        "--data",
        help=f"Data: {', '.join(KNOWN)}, a folder train/CLASS/*, table.csv, arrays.npz, "
        "file.py:factory. Default: the checkpoint's own; digits for new ones.",
        panel=_DATA,
        autocompletion=completing.data,
    ),
]
DataDir = Annotated[
    Path | None,
    option(
        "--data-dir", help="Folder of the known data sets.", panel=_DATA, envvar="LPSS_DATA_DIR"
    ),
]
Target = Annotated[str | None, option("--target", help="Table: column to predict.", panel=_DATA)]
Drop = Annotated[
    str | None, option("--drop", help="Table: columns to leave out, by comma.", panel=_DATA)
]
ImageSize = Annotated[
    int | None,
    option(
        "--image-size",
        help="Side in pixels. Default: the data's own; 224 for folders.",
        panel=_DATA,
    ),
]
Mean = Annotated[
    str | None,
    option(
        "--mean",
        help="Subtracted from inputs, per channel, by comma. Default: the data's.",
        panel=_DATA,
    ),
]
Std = Annotated[
    str | None,
    option("--std", help="Inputs are divided by it, by comma. Default: the data's.", panel=_DATA),
]
Augment = Annotated[
    str | None,
    option(
        "--augment",
        help=f"Training images: {', '.join(AUGMENTS)}. Default: none; cifar for CIFAR.",
        panel=_DATA,
        autocompletion=completing.among(AUGMENTS),
    ),
]
SplitSeed = Annotated[
    int | None,
    option("--split-seed", help="Table: which of the fixed splits. Default: 0.", panel=_DATA),
]
Workers = Annotated[
    int | None, option("--workers", help="Processes that read big data. Default: 0.", panel=_DATA)
]
Holdout = Annotated[
    float | None,
    option(
        "--holdout",
        help="Measure on this part of the training data instead of the test split: "
        "for choosing options.",
        panel=_DATA,
    ),
]
Sparsity = Annotated[
    str | None,
    option(
        "--sparsity",
        "-s",
        help="Zeros of all prunable weights: 0.9, 90% or 10x. Default: 0 (train), 0.9 (sparsify).",
        panel=_RUN,
    ),
]
TargetDrop = Annotated[
    float | None,
    option(
        "--target-drop",
        help="Find the sparsity: the largest that loses at most so many points (hundredths) of the "
        "metric on a held-out part of the training data. Default: --sparsity is given.",
        panel=_RUN,
    ),
]
Tries = Annotated[
    int | None,
    option("--tries", help="Sparsities that --target-drop tries. Default: 6.", panel=_RUN),
]
Distill = Annotated[
    float | None,
    option(
        "--distill",
        help="Part of the loss, 0 to 1, that compares the class scores with those of the network "
        "as it was. Default: 0.",
        panel=_RUN,
    ),
]
Temperature = Annotated[
    float | None,
    option("--temperature", help="Of --distill: higher is softer. Default: 4.", panel=_RUN),
]
MethodName = Annotated[
    str | None,
    option(
        "--method",
        "-m",
        help=f"How to become sparse: {', '.join(methods.registry())}. "
        "Default: lpss; dense for train without --sparsity.",
        panel=_RUN,
        autocompletion=completing.method,
    ),
]
Epochs = Annotated[
    int | None,
    option(
        "--epochs",
        help="Passes over the data; 0 only cuts. Default: 12 (train), 4 (sparsify), "
        "more on small data.",
        panel=_RUN,
    ),
]
BatchSize = Annotated[
    int | None,
    option("--batch-size", help="Examples a step. Default: 16 to 256 by data size.", panel=_RUN),
]
Seed = Annotated[
    int | None, option("--seed", help="Of initialisation, order and masks. Default: 0.", panel=_RUN)
]
Device = Annotated[
    str | None,
    option(
        "--device",
        help="cpu, cuda, cuda:1, mps. Default: auto, CUDA where there is one.",
        panel=_RUN,
        autocompletion=completing.among(completing.DEVICES),
    ),
]
Threads = Annotated[
    int | None, option("--threads", help="CPU threads; default: 1 for small nets.", panel=_RUN)
]
Precision = Annotated[
    str | None,
    option(
        "--precision",
        help="Of forward and backward: fp32, or bf16 (weights and steps stay fp32). Default: fp32.",
        panel=_RUN,
        autocompletion=completing.among(("fp32", "bf16")),
    ),
]
Layer = Annotated[
    list[str] | None,
    option(
        "--layer",
        help="PATTERN=SPARSITY: a target of some layers' own, exactly; the others share what the "
        "whole target leaves. Repeatable, later ones win. Default: none.",
        panel=_RUN,
    ),
]
Skip = Annotated[
    list[str] | None,
    option("--skip", help="Weights not pruned, by pattern; repeatable. Default: none.", panel=_RUN),
]


Recipe = Annotated[
    str | None,
    option(
        "--recipe",
        help="Take options from a published experiment or a .toml file; typed ones win.",
        panel=_RUN,
        autocompletion=completing.recipe,
    ),
]
Resume = Annotated[
    bool, option("--resume", help="Go on with a killed run, from OUT.partial.", panel=_RUN)
]
CheckpointSteps = Annotated[
    int | None,
    option(
        "--checkpoint-steps",
        help="Save the run's state every so many steps too. "
        "Default: at ends of epochs, 30 s apart.",
        panel=_RUN,
    ),
]


EvalEvery = Annotated[
    int | None,
    option(
        "--eval-every",
        help="Measure after every so many epochs too, for the report's curve; 0: never. "
        "Default: ten times a run.",
        panel=_RUN,
    ),
]
Log = Annotated[
    Path | None,
    option("--log", help="Append a JSON line an epoch to this file. Default: none.", panel=_OUTPUT),
]
TensorBoard = Annotated[
    Path | None,
    option(
        "--tensorboard",
        help="Write TensorBoard events to this folder. Default: none.",
        panel=_OUTPUT,
    ),
]


#: Groups of options by parameter name, in the order of the help: (type, default).
TRAINING: dict[str, tuple[Any, Any]] = {
    "sparsity": (Sparsity, None),
    "method": (MethodName, None),
    "epochs": (Epochs, None),
    "batch_size": (BatchSize, None),
    "seed": (Seed, None),
    "device": (Device, None),
    "threads": (Threads, None),
    "precision": (Precision, None),
    "layer": (Layer, None),
    "skip": (Skip, None),
}
TEACHER: dict[str, tuple[Any, Any]] = {
    "distill": (Distill, None),
    "temperature": (Temperature, None),
}
SEARCH: dict[str, tuple[Any, Any]] = {
    "target_drop": (TargetDrop, None),
    "tries": (Tries, None),
}
RUN: dict[str, tuple[Any, Any]] = {
    "recipe": (Recipe, None),
    "resume": (Resume, False),
    "checkpoint_steps": (CheckpointSteps, None),
    "eval_every": (EvalEvery, None),
    "log": (Log, None),
    "tensorboard": (TensorBoard, None),
    "keep_init": (KeepInit, False),
}
DATA: dict[str, tuple[Any, Any]] = {
    "data": (DataName, None),
    "arch": (Arch, None),
    "data_dir": (DataDir, None),
    "target": (Target, None),
    "drop": (Drop, None),
    "image_size": (ImageSize, None),
    "mean": (Mean, None),
    "std": (Std, None),
    "augment": (Augment, None),
    "split_seed": (SplitSeed, None),
    "workers": (Workers, None),
    "holdout": (Holdout, None),
}
#: The options of a training whose target and method are settled.
BUDGET: dict[str, tuple[Any, Any]] = {
    name: kind
    for name, kind in TRAINING.items()
    if name not in ("sparsity", "method", "layer", "skip")
} | {name: RUN[name] for name in ("resume", "checkpoint_steps", "eval_every", "log", "tensorboard")}
#: What all runs of a comparison share.
SHARED: dict[str, tuple[Any, Any]] = {
    name: TRAINING[name]
    for name in ("epochs", "batch_size", "device", "threads", "precision", "skip")
} | {"checkpoint_steps": RUN["checkpoint_steps"]}
#: What a plan needs to know: the target, and the shape of a network that is not trained yet.
PLAN: dict[str, tuple[Any, Any]] = {name: TRAINING[name] for name in ("sparsity", "layer", "skip")}
PLACE: dict[str, tuple[Any, Any]] = {
    name: DATA[name] for name in ("arch", "data", "data_dir", "target", "drop", "image_size")
}
CHECKPOINT: dict[str, tuple[Any, Any]] = {"trust_pickle": (Trust, False)}
DEVICE: dict[str, tuple[Any, Any]] = {"device": (Device, None)}
ARTEFACT: dict[str, tuple[Any, Any]] = {"out": (Out, None)}
DRAFT: dict[str, tuple[Any, Any]] = {"out": (DraftTo, None)}
UNPACKED: dict[str, tuple[Any, Any]] = {"out": (UnpackedTo, None)}
INIT: dict[str, tuple[Any, Any]] = {"keep_init": (KeepInit, False)}
WRITING: dict[str, tuple[Any, Any]] = {"force": (Force, False)}
PRINTING: dict[str, tuple[Any, Any]] = {
    "as_json": (Json, False),
    "quiet": (Quiet, False),
    "debug": (Debug, False),
}
