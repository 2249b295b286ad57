"""Options that commands share, in groups. Imports no torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli.cli import completion
from lpss_cli.data.spec import AUGMENTS, DATA_DIR_VARIABLE, KNOWN
from lpss_cli.models import KNOWN as NETWORKS
from lpss_cli.training import method as methods

# MERGED: How an option of the command line is declared: its type, its flags, its help and its
# MERGED: panel.
#: Options by parameter name, in the order of the help: (type, default).
Group = dict[str, tuple[Any, Any]]
#: The panels of the help.
TRAINING_PANEL, NETWORK_PANEL, OUTPUT_PANEL = "Training", "Data and network", "Output"


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """Declare one flag in a panel of the help; the help names its default itself."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


def flag(kind: Any, *names: str, help: str, panel: str, **more: Any) -> tuple[Any, Any]:
    """Declare a flag that takes a value of this kind; None where it is not given."""
    return Annotated[kind | None, option(*names, help=help, panel=panel, **more)], None


def switch(*names: str, help: str, panel: str) -> tuple[Any, Any]:
    """Declare a flag that takes no value; False where it is not given."""
    return Annotated[bool, option(*names, help=help, panel=panel)], False


# MERGED: Options of the checkpoint, the network and the data.
_network_flag = partial(flag, panel=NETWORK_PANEL)

File = Annotated[Path | None, typer.Argument(help="Checkpoint; default: the newest here.")]
DATA: Group = {
    "data": _network_flag(
        str,
        "--data",
        help=f"Data: {', '.join(KNOWN)}, a folder train/CLASS/*, table.csv, arrays.npz, "
        "file.py:factory. Default: the checkpoint's own; digits for new ones.",
        autocompletion=completion.data,
    ),
    "arch": _network_flag(
        str,
        "--arch",
        help=f"Network: {', '.join(NETWORKS)}, mlp:A-B-C, torchvision:NAME, timm:NAME, "
        "hf:FOLDER, file.py:factory. Default: the checkpoint's own, else recognised; mlp for new "
        "ones.",
        autocompletion=completion.arch,
    ),
    "data_dir": _network_flag(
        Path, "--data-dir", help="Folder of the known data sets.", envvar=DATA_DIR_VARIABLE
    ),
    "target": _network_flag(str, "--target", help="Table: column to predict."),
    "drop": _network_flag(str, "--drop", help="Table: columns to leave out, by comma."),
    "image_size": _network_flag(
        int, "--image-size", help="Side in pixels. Default: the data's own; 224 for folders."
    ),
    "mean": _network_flag(
        str, "--mean", help="Subtracted from inputs, per channel, by comma. Default: the data's."
    ),
    "std": _network_flag(
        str, "--std", help="Inputs are divided by it, by comma. Default: the data's."
    ),
    "augment": _network_flag(
        str,
        "--augment",
        help=f"Training images: {', '.join(AUGMENTS)}. Default: none; cifar for CIFAR.",
        autocompletion=completion.among(AUGMENTS),
    ),
    "split_seed": _network_flag(
        int, "--split-seed", help="Table: which of the fixed splits. Default: 0."
    ),
    "workers": _network_flag(int, "--workers", help="Processes that read big data. Default: 0."),
    "holdout": _network_flag(
        float,
        "--holdout",
        help="Measure on this part of the training data instead of the test split: "
        "for choosing options.",
    ),
}
CHECKPOINT: Group = {
    "trust_pickle": switch(
        "--trust-pickle", help="Unpickle objects; only for files you trust.", panel=NETWORK_PANEL
    ),
}


# MERGED: Options of a training: its target, its method, its budget, and what is kept of it.
_training_flag = partial(flag, panel=TRAINING_PANEL)

TRAINING: Group = {
    "sparsity": _training_flag(
        str,
        "--sparsity",
        "-s",
        help="Zeros of all prunable weights: 0.9, 90% or 10x. Default: 0 (train), 0.9 (sparsify).",
    ),
    "method": _training_flag(
        str,
        "--method",
        "-m",
        help=f"How to become sparse: {', '.join(methods.registry())}. "
        "Default: lpss; dense for train without --sparsity.",
        autocompletion=completion.method,
    ),
    "epochs": _training_flag(
        int,
        "--epochs",
        help="Passes over the data; 0 only cuts. Default: 12 (train), 4 (sparsify), "
        "more on small data.",
    ),
    "batch_size": _training_flag(
        int, "--batch-size", help="Examples a step. Default: 16 to 256 by data size."
    ),
    "seed": _training_flag(int, "--seed", help="Of initialisation, order and masks. Default: 0."),
    "device": _training_flag(
        str,
        "--device",
        help="cpu, cuda, cuda:1, mps. Default: auto, CUDA where there is one.",
        autocompletion=completion.among(completion.DEVICES),
    ),
    "threads": _training_flag(int, "--threads", help="CPU threads; default: 1 for small nets."),
    "precision": _training_flag(
        str,
        "--precision",
        help="Of forward and backward: fp32, or bf16 (weights and steps stay fp32). Default: fp32.",
        autocompletion=completion.among(("fp32", "bf16")),
    ),
    "layer": _training_flag(
        list[str],
        "--layer",
        help="PATTERN=SPARSITY: a target of some layers' own, exactly; the others share what the "
        "whole target leaves. Repeatable, later ones win. Default: none.",
    ),
    "skip": _training_flag(
        list[str], "--skip", help="Weights not pruned, by pattern; repeatable. Default: none."
    ),
}
TEACHER: Group = {
    "distill": _training_flag(
        float,
        "--distill",
        help="Part of the loss, 0 to 1, that compares the class scores with those of the network "
        "as it was. Default: 0.",
    ),
    "temperature": _training_flag(
        float, "--temperature", help="Of --distill: higher is softer. Default: 4."
    ),
}
SEARCH: Group = {
    "target_drop": _training_flag(
        float,
        "--target-drop",
        help="Find the sparsity: the largest that loses at most so many points (hundredths) of the "
        "metric on a held-out part of the training data. Default: no search.",
    ),
    "tries": _training_flag(
        int, "--tries", help="Sparsities that --target-drop tries. Default: 6."
    ),
}
RUN: Group = {
    "recipe": _training_flag(
        str,
        "--recipe",
        help="Take options from a published experiment or a .toml file; typed ones win.",
        autocompletion=completion.recipe,
    ),
    "resume": switch(
        "--resume", help="Go on with a killed run, from OUT.partial.", panel=TRAINING_PANEL
    ),
    "checkpoint_steps": _training_flag(
        int,
        "--checkpoint-steps",
        help="Save the run's state every so many steps too. "
        "Default: at ends of epochs, 30 s apart.",
    ),
    "eval_every": _training_flag(
        int,
        "--eval-every",
        help="Measure after every so many epochs too, for the report's curve; 0: never. "
        "Default: ten times a run.",
    ),
    "log": _training_flag(
        Path,
        "--log",
        help="Append a JSON line an epoch to this file. Default: none.",
        panel=OUTPUT_PANEL,
    ),
    "tensorboard": _training_flag(
        Path,
        "--tensorboard",
        help="Write TensorBoard events to this folder. Default: none.",
        panel=OUTPUT_PANEL,
    ),
    "keep_init": switch(
        "--keep-init",
        help="Store the weights that training starts from too, for `lpss ticket`.",
        panel=OUTPUT_PANEL,
    ),
}


#: The options of a training whose target and method are settled.
BUDGET: Group = {
    name: kind
    for name, kind in TRAINING.items()
    if name not in ("sparsity", "method", "layer", "skip")
} | {name: RUN[name] for name in ("resume", "checkpoint_steps", "eval_every", "log", "tensorboard")}
#: What all runs of a comparison share.
SHARED: Group = {
    name: TRAINING[name]
    for name in ("epochs", "batch_size", "device", "threads", "precision", "skip")
} | {"checkpoint_steps": RUN["checkpoint_steps"]}
#: What a plan needs to know: the target, and the shape of a network that is not trained yet.
PLAN: Group = {name: TRAINING[name] for name in ("sparsity", "layer", "skip")}
PLACE: Group = {
    name: DATA[name] for name in ("arch", "data", "data_dir", "target", "drop", "image_size")
}
DEVICE: Group = {"device": TRAINING["device"]}

__all__ = [
    "ARTEFACT", "BUDGET", "CHECKPOINT", "DATA", "DEVICE", "DRAFT", "PLACE", "PLAN", "PRINTING",
    "RUN", "SEARCH", "SHARED", "TEACHER", "TRAINING", "UNPACKED", "WRITING", "File",
]  # fmt: skip


# MERGED: Options of what is written and printed.
_output_flag = partial(flag, panel=OUTPUT_PANEL)
_output_switch = partial(switch, panel=OUTPUT_PANEL)

ARTEFACT: Group = {
    "out": _output_flag(
        Path, "--out", "-o", help="Artefact to write. Default: model.pt, FILE.sparse.pt."
    ),
}
DRAFT: Group = {
    "out": _output_flag(Path, "--out", "-o", help="Recipe to write. Default: recipe.toml."),
}
UNPACKED: Group = {
    "out": _output_flag(Path, "--out", "-o", help="File to write. Default: FILE.safetensors."),
}
WRITING: Group = {
    "force": _output_switch("--force", "-f", help="Replace existing outputs."),
}
PRINTING: Group = {
    "as_json": _output_switch("--json", help="Print one JSON document on stdout."),
    "quiet": _output_switch("--quiet", "-q", help="No notes and no bars."),
    "debug": _output_switch("--debug", help="Show tracebacks."),
}
