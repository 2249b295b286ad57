"""Commands that measure and change nothing: report, plan, verify, eval, doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lpss_cli.cli import context as run
from lpss_cli.cli import options as o
from lpss_cli.cli.parser import with_options
from lpss_cli.errors import InputError

if TYPE_CHECKING:
    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.cli.console import Out
    from lpss_cli.report.report import Report

# The options of a method that a plan answers to.
_PLANNED = ("p", "off_sphere", "ranking")


@with_options(o.DATA, o.CHECKPOINT, o.WRITING, o.PRINTING)
def report(
    values: dict[str, Any],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoints; default: the newest here.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print the layers as CSV.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write one page with pictures that needs no network."),
    ] = None,
    sizes: Annotated[
        bool,
        typer.Option(
            "--sizes",
            help="Measure all files that export would write, and a batch in onnxruntime; leaves "
            "none behind.",
        ),
    ] = False,
) -> None:
    """Count zeros and measure Hoyer sparsity, layer by layer."""
    from lpss_cli.cli.console import size
    from lpss_cli.cli.views import report as views
    from lpss_cli.utils.files import check_writable

    printer = run.printer(values)
    _check_report(values, csv, sizes)
    if html is not None:
        check_writable(html, force=values["force"], option="--html")
    paths = files or [run.input_file(None, printer)]
    if html is not None and _among(html, paths):
        raise InputError(f"--html names {html}, which is to be read", "give the page another name")
    checkpoints, reports = _measured(paths, values, printer, sizes)
    if html is not None:
        from lpss_cli.report import html as pages

        states = [checkpoint.stream or checkpoint.state_dict for checkpoint in checkpoints]
        written = pages.write(html, list(zip(reports, states, strict=True)))
        printer.note(f"wrote {html}, {size(written)}")
    if csv:
        printer.text(views.csv_text(reports).rstrip("\n"))
        return
    for item in reports:
        for text in views.warnings(item):
            printer.warn(text)
        printer.show(views.layer_table(item, printer.width), views.origin_table(item))
        printer.show(*views.measured_tables(item))
    documents = [item.to_dict() for item in reports]
    printer.document(documents[0] if len(documents) == 1 else documents)


def _among(path: Path, paths: list[Path]) -> bool:
    """Whether a file is one of several, by whatever name."""
    exist = os.path.exists  # Path.exists fails on names that are too long
    return exist(path) and any(exist(other) and os.path.samefile(path, other) for other in paths)


def _check_report(values: dict[str, Any], csv: bool, sizes: bool) -> None:
    """Refuse options that exclude or need each other."""
    if csv and values["as_json"]:
        raise InputError("--csv and --json exclude each other", "choose one")
    if csv and sizes:
        raise InputError("--csv has the layers alone, and no --sizes", "use --json")
    # The folder may come from the environment, and a network's name serves without data too.
    for name in set(o.DATA) - {"data_dir", "arch"}:
        if values[name] is not None and not sizes:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} says how to measure with data", "add --sizes")


def _measured(
    paths: list[Path], values: dict[str, Any], printer: Out, sizes: bool
) -> tuple[list[Checkpoint], list[Report]]:
    """Read and measure every file; what its files would cost only where it was asked for."""
    from lpss_cli.checkpoints.identify import introduce
    from lpss_cli.checkpoints.loading import browse
    from lpss_cli.checkpoints.safetensors_file import can_stream
    from lpss_cli.report.report import report as measure

    if sizes or not all(map(can_stream, paths)):
        run.load_torch()
    checkpoints = [browse(path, trust_pickle=values["trust_pickle"]) for path in paths]
    # Where files are measured too, their export says the same.
    for checkpoint in checkpoints if not (sizes or printer.quiet) else ():
        for text in (*checkpoint.notes, *introduce(checkpoint)):
            printer.note(text)
    reports = [measure(checkpoint) for checkpoint in checkpoints]
    if sizes:
        from lpss_cli.cli.progress import Printer
        from lpss_cli.jobs.export import with_files

        with printer.busy("measuring files"):
            reports = [
                with_files(item, run.request(values, path, {}, {}), Printer(printer))
                for item, path in zip(reports, paths, strict=True)
            ]
    else:
        from lpss_cli.jobs.export import with_savings

        pairs = zip(reports, checkpoints, strict=True)
        reports = [with_savings(item, checkpoint, values["arch"]) for item, checkpoint in pairs]
    return checkpoints, reports


@with_options(o.PLAN, o.PLACE, o.CHECKPOINT, o.PRINTING, method_fields=_PLANNED)
def plan(
    values: dict[str, Any],
    chosen: dict[str, Any],
    file: Annotated[
        Path | None, typer.Argument(help="Checkpoint; default: --arch, else the newest here.")
    ] = None,
    hoyer: Annotated[
        float | None,
        typer.Option("--hoyer", help="Wished Hoyer sparsity of every layer: finds its p, above 1."),
    ] = None,
) -> None:
    """Predict p, Hoyer sparsity and kept weights before any training."""
    from lpss_cli.cli.views.report import plan_table
    from lpss_cli.jobs.commands import plan_for

    printer = run.printer(values)
    path = run.input_file(file, printer) if file or not values["arch"] else None
    result = plan_for(path, run.request(values, Path(), chosen, {}), hoyer, printer.note)
    printer.show(plan_table(result, printer.width))
    printer.note("Hoyer: without any pruning; 'Hoyer then': with all but the kept weights zero")
    printer.document(result.to_dict())


@with_options(o.DATA, o.DEVICE, o.CHECKPOINT, o.PRINTING)
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The file that counts as right.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The file to compare with it.")],
    values: dict[str, Any],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of a weight that is no difference, default 0; of an ONNX "
            "file's outputs as a part of the largest, default 1e-5."
        ),
    ] = None,
) -> None:
    """Compare two files: weights, zeros, predictions. Exit code 0 if equal, else 1.

    B may be an ONNX file; its predictions are compared.
    """
    from lpss_cli.cli.views.files import verdict, verify_table
    from lpss_cli.jobs.verify import verify_files

    printer = run.printer(values)
    with printer.busy("comparing"):
        result = verify_files(a, b, run.request(values, a, {}, {}), tolerance)
    printer.show(*([verify_table(result)] if result.tensors else []), verdict(result))
    printer.document(result.to_dict())
    if not result.equal:
        raise typer.Exit(1)


@with_options(o.DATA, o.DEVICE, o.CHECKPOINT, o.PRINTING)
def evaluate(
    values: dict[str, Any],
    file: o.File = None,
) -> None:
    """Print the metric of a checkpoint on its test split, alone."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.jobs.commands import evaluate_file

    printer = run.printer(values)
    path = run.input_file(file, printer)
    primary, metrics = evaluate_file(path, run.request(values, path, {}, {}), Printer(printer))
    if not values["as_json"]:
        printer.text(f"{metrics[primary]:.6g}")
    printer.document({"file": str(path), "primary_metric": primary, **metrics})


@with_options(o.PRINTING)
def doctor(values: dict[str, Any]) -> None:
    """Look at the environment: packages, devices, room. Exit code 1 if something is missing."""
    from lpss_cli.cli.views.files import findings_table
    from lpss_cli.jobs.doctor import examine

    printer = run.printer(values)
    with printer.busy("looking"):
        findings = examine(Path().absolute())
    printer.show(findings_table(findings))
    printer.document({"findings": [finding.to_dict() for finding in findings]})
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)
