"""Options of the checkpoint, the network and the data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli import completing
from lpss_cli.cli.options import declaring
from lpss_cli.cli.options.declaring import NETWORK, Group, switch
from lpss_cli.data.spec import AUGMENTS, DATA_DIR_VARIABLE, KNOWN
from lpss_cli.models import KNOWN as NETWORKS

flag = partial(declaring.flag, panel=NETWORK)

File = Annotated[Path | None, typer.Argument(help="Checkpoint; default: the newest here.")]
DATA: Group = {
    "data": flag(
        str,
        "--data",
        help=f"Data: {', '.join(KNOWN)}, a folder train/CLASS/*, table.csv, arrays.npz, "
        "file.py:factory. Default: the checkpoint's own; digits for new ones.",
        autocompletion=completing.data,
    ),
    "arch": flag(
        str,
        "--arch",
        help=f"Network: {', '.join(NETWORKS)}, mlp:A-B-C, torchvision:NAME, timm:NAME, "
        "hf:FOLDER, file.py:factory. Default: the checkpoint's own, else recognised; mlp for new "
        "ones.",
        autocompletion=completing.arch,
    ),
    "data_dir": flag(
        Path, "--data-dir", help="Folder of the known data sets.", envvar=DATA_DIR_VARIABLE
    ),
    "target": flag(str, "--target", help="Table: column to predict."),
    "drop": flag(str, "--drop", help="Table: columns to leave out, by comma."),
    "image_size": flag(
        int, "--image-size", help="Side in pixels. Default: the data's own; 224 for folders."
    ),
    "mean": flag(
        str, "--mean", help="Subtracted from inputs, per channel, by comma. Default: the data's."
    ),
    "std": flag(str, "--std", help="Inputs are divided by it, by comma. Default: the data's."),
    "augment": flag(
        str,
        "--augment",
        help=f"Training images: {', '.join(AUGMENTS)}. Default: none; cifar for CIFAR.",
        autocompletion=completing.among(AUGMENTS),
    ),
    "split_seed": flag(int, "--split-seed", help="Table: which of the fixed splits. Default: 0."),
    "workers": flag(int, "--workers", help="Processes that read big data. Default: 0."),
    "holdout": flag(
        float,
        "--holdout",
        help="Measure on this part of the training data instead of the test split: "
        "for choosing options.",
    ),
}
CHECKPOINT: Group = {
    "trust_pickle": switch(
        "--trust-pickle", help="Unpickle objects; only for files you trust.", panel=NETWORK
    ),
}
