"""Commands that train several networks to learn something: ticket, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli.cli import context as run
from lpss_cli.cli import options as o
from lpss_cli.cli.completion import among, some_methods
from lpss_cli.cli.parser import with_options

# The options of a ticket's retraining, plain SGD.
_SGD = ("lr", "momentum", "weight_decay", "clip", "warmup")


@with_options(o.BUDGET, o.DATA, o.CHECKPOINT, o.ARTEFACT, o.WRITING, o.PRINTING, method_fields=_SGD)
def ticket(
    file: Annotated[Path, typer.Argument(help="Sparse checkpoint whose mask is trained again.")],
    values: dict[str, Any],
    chosen: dict[str, Any],
    start: Annotated[
        str,
        typer.Option(
            "--init",
            help="Start: rewind (needs --keep-init), centroids (two numbers a layer), random.",
            autocompletion=among(("rewind", "centroids", "random")),
        ),
    ] = "rewind",
    control: Annotated[
        bool, typer.Option(help="Train a random mask of the same counts too.")
    ] = True,
) -> None:
    """Train a sparse network's mask again, beside a random one."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.training import ticket_panel
    from lpss_cli.jobs.ticket import ticket as train_ticket

    printer = run.printer(values)
    target = values["out"] or run.beside(file, ".ticket.pt")
    with Printer(printer) as callback:
        result = train_ticket(
            file, run.request(values, target, chosen, {}), start, control=control, callback=callback
        )
    printer.show(ticket_panel(result))
    printer.document(result.to_dict())


@with_options(o.SHARED, o.DATA, o.PRINTING)
def compare(
    values: dict[str, Any],
    method_names: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Methods, by comma; a dense run is always made.",
            autocompletion=some_methods,
        ),
    ] = "lpss,gmp",
    sparsities: Annotated[
        str, typer.Option("--sparsities", help="Targets, by comma: 0.8,0.9,60x.")
    ] = "0.8,0.9,0.95,0.98",
    seeds: Annotated[int, typer.Option(help="Runs of every method and target.")] = 3,
    tune: Annotated[
        bool, typer.Option(help="Choose learning rate and decay on held-out data first.")
    ] = True,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", help="Folder of results; a killed run goes on there.")
    ] = Path("compare"),
) -> None:
    """Train several methods alike and set them side by side."""
    from lpss_cli.cli.views.training import compare_table
    from lpss_cli.jobs.compare import Comparison, accuracy_against_sparsity
    from lpss_cli.jobs.compare import compare as compare_methods

    printer = run.printer(values)
    what = Comparison(
        tuple(part.strip() for part in method_names.split(",") if part.strip()),
        tuple(part.strip() for part in sparsities.split(",") if part.strip()),
        seeds,
        tune,
    )
    request = run.request(values, out_dir, {}, {})
    with printer.busy("training"):
        rows = compare_methods(what, request, out_dir, printer.note)
    title = f"{values['arch'] or 'the default network'} on {values['data'] or 'digits'}"
    picture = out_dir / "accuracy.svg"
    accuracy_against_sparsity(rows, title, picture)
    printer.show(compare_table(rows, title))
    printer.note(f"all runs: {out_dir / 'results.json'}, picture: {picture}")
    printer.document({"rows": rows, "picture": str(picture)})
