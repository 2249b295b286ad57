"""Options that commands share, in groups. Imports no torch."""

from __future__ import annotations

from lpss_cli.cli.options.declaring import Group
from lpss_cli.cli.options.network import CHECKPOINT, DATA, File
from lpss_cli.cli.options.output import ARTEFACT, DRAFT, PRINTING, UNPACKED, WRITING
from lpss_cli.cli.options.training import RUN, SEARCH, TEACHER, TRAINING

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
