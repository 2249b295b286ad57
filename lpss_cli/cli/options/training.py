"""Options of a training: its target, its method, its budget, and what is kept of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lpss_cli import method as methods
from lpss_cli.cli import completing
from lpss_cli.cli.options import declaring
from lpss_cli.cli.options.declaring import OUTPUT, Group, switch

flag = partial(declaring.flag, panel=declaring.TRAINING)

TRAINING: Group = {
    "sparsity": flag(
        str,
        "--sparsity",
        "-s",
        help="Zeros of all prunable weights: 0.9, 90% or 10x. Default: 0 (train), 0.9 (sparsify).",
    ),
    "method": flag(
        str,
        "--method",
        "-m",
        help=f"How to become sparse: {', '.join(methods.registry())}. "
        "Default: lpss; dense for train without --sparsity.",
        autocompletion=completing.method,
    ),
    "epochs": flag(
        int,
        "--epochs",
        help="Passes over the data; 0 only cuts. Default: 12 (train), 4 (sparsify), "
        "more on small data.",
    ),
    "batch_size": flag(
        int, "--batch-size", help="Examples a step. Default: 16 to 256 by data size."
    ),
    "seed": flag(int, "--seed", help="Of initialisation, order and masks. Default: 0."),
    "device": flag(
        str,
        "--device",
        help="cpu, cuda, cuda:1, mps. Default: auto, CUDA where there is one.",
        autocompletion=completing.among(completing.DEVICES),
    ),
    "threads": flag(int, "--threads", help="CPU threads; default: 1 for small nets."),
    "precision": flag(
        str,
        "--precision",
        help="Of forward and backward: fp32, or bf16 (weights and steps stay fp32). Default: fp32.",
        autocompletion=completing.among(("fp32", "bf16")),
    ),
    "layer": flag(
        list[str],
        "--layer",
        help="PATTERN=SPARSITY: a target of some layers' own, exactly; the others share what the "
        "whole target leaves. Repeatable, later ones win. Default: none.",
    ),
    "skip": flag(
        list[str], "--skip", help="Weights not pruned, by pattern; repeatable. Default: none."
    ),
}
TEACHER: Group = {
    "distill": flag(
        float,
        "--distill",
        help="Part of the loss, 0 to 1, that compares the class scores with those of the network "
        "as it was. Default: 0.",
    ),
    "temperature": flag(float, "--temperature", help="Of --distill: higher is softer. Default: 4."),
}
SEARCH: Group = {
    "target_drop": flag(
        float,
        "--target-drop",
        help="Find the sparsity: the largest that loses at most so many points (hundredths) of the "
        "metric on a held-out part of the training data. Default: no search.",
    ),
    "tries": flag(int, "--tries", help="Sparsities that --target-drop tries. Default: 6."),
}
RUN: Group = {
    "recipe": flag(
        str,
        "--recipe",
        help="Take options from a published experiment or a .toml file; typed ones win.",
        autocompletion=completing.recipe,
    ),
    "resume": switch(
        "--resume", help="Go on with a killed run, from OUT.partial.", panel=declaring.TRAINING
    ),
    "checkpoint_steps": flag(
        int,
        "--checkpoint-steps",
        help="Save the run's state every so many steps too. "
        "Default: at ends of epochs, 30 s apart.",
    ),
    "eval_every": flag(
        int,
        "--eval-every",
        help="Measure after every so many epochs too, for the report's curve; 0: never. "
        "Default: ten times a run.",
    ),
    "log": flag(
        Path, "--log", help="Append a JSON line an epoch to this file. Default: none.", panel=OUTPUT
    ),
    "tensorboard": flag(
        Path,
        "--tensorboard",
        help="Write TensorBoard events to this folder. Default: none.",
        panel=OUTPUT,
    ),
    "keep_init": switch(
        "--keep-init",
        help="Store the weights that training starts from too, for `lpss ticket`.",
        panel=OUTPUT,
    ),
}
