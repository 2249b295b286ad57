"""Commands that train: train, sparsify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli.cli import context as run
from lpss_cli.cli import options as o
from lpss_cli.cli.console import Out
from lpss_cli.cli.parser import with_options
from lpss_cli.distributed import launch
from lpss_cli.errors import InputError

# Tensors of a file that are named when they are left alone; --json has all of them.
_NAMED = 5


@with_options(o.TRAINING, o.RUN, o.DATA, o.ARTEFACT, o.WRITING, o.PRINTING, of_methods=True)
def train(values: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Train a network from scratch: dense, or sparse with --sparsity."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import outcome_panel
    from lpss_cli.jobs.commands import train as train_network

    printer = run.printer(values)
    base = run.recipe(values, "train", printer)
    request = run.request(values, values["out"] or Path("model.pt"), chosen, base)
    with Printer(printer) as callback:
        outcome = train_network(request, callback)
    following = "lpss report" if outcome.report.zeros else f"lpss sparsify {request.out}"
    printer.show(outcome_panel(outcome, "trained", following))
    printer.document(outcome.to_dict())


@with_options(
    o.TRAINING,
    o.SEARCH,
    o.TEACHER,
    o.RUN,
    o.DATA,
    o.CHECKPOINT,
    o.ARTEFACT,
    o.WRITING,
    o.PRINTING,
    of_methods=True,
)
def sparsify(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint: .pt, .pth, .safetensors, or a Hub folder.")
    ],
    values: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    """Sparse-train a checkpoint, to exactly 90 % zeros or --sparsity."""
    printer = run.printer(values)
    base = run.recipe(values, "sparsify", printer)
    if _one_shot(file, values, base):
        _cut_file(file, values, chosen | base, printer)
        return
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import outcome_panel
    from lpss_cli.jobs.commands import sparsify as sparsify_file

    target = values["out"] or run.beside(file, ".sparse.pt")
    request = run.request(values, target, chosen, base)
    with Printer(printer) as callback:
        outcome = sparsify_file(file, request, callback)
    printer.show(outcome_panel(outcome, "sparsified", "lpss report, lpss export"))
    printer.document(outcome.to_dict())


def _one_shot(file: Path, values: dict[str, Any], base: dict[str, Any]) -> bool:
    """Whether tensors without a network are to be cut once: no epochs, no --arch, no --data."""
    if {**base, **{k: v for k, v in values.items() if v is not None}}.get("epochs") != 0:
        return False
    from lpss_cli.jobs.oneshot import suits

    return values["arch"] is None and values["data"] is None and suits(file)


def _cut_file(file: Path, values: dict[str, Any], chosen: dict[str, Any], printer: Out) -> None:
    from lpss_cli.cli.views.files import cut_panel
    from lpss_cli.jobs.oneshot import cut
    from lpss_cli.sparsity.targets import parse_sparsity as sparsity

    named = {"--method": values["method"] not in (None, "gmp", "dense"),
             "--layer": bool(values["layer"]),
             "--distill": values["distill"] is not None,
             "--target-drop": values["target_drop"] is not None,
             "--ranking": chosen.pop("ranking", None) not in (None, "magnitude")}  # fmt: skip
    wrong = [flag for flag, other in named.items() if other]
    wrong += [f"--{key.replace('_', '-')}" for key, value in chosen.items() if value is not None]
    if wrong:
        raise InputError(
            "one cut of a bare file ranks by magnitude and trains nothing",
            f"leave out {', '.join(wrong)}, or pass --arch and --data",
        )
    launch.refuse("the cut of a bare file")
    out = values["out"] or file.with_name(f"{file.stem}.sparse.safetensors")
    target = sparsity(values["sparsity"]) if values["sparsity"] is not None else 0.9
    with printer.busy("cutting"):
        result = cut(file, out, target, values["skip"] or (), force=values["force"])
    if result.left:
        more = len(result.left) - _NAMED
        rest = f" and {more:,} more" if more > 0 else ""
        printer.note(f"left as they are: {', '.join(result.left[:_NAMED])}{rest}")
    printer.show(cut_panel(result))
    printer.document(result.to_dict())
