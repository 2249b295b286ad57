"""The commands. Each parses, calls one library function and prints what it returned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli import launch
from lpss_cli.cli import options as o
from lpss_cli.cli.flags import with_options
from lpss_cli.cli.out import Out
from lpss_cli.errors import InputError, LpssError, StoppedError

app = typer.Typer(
    name="lpss",
    help="Make PyTorch networks sparse, and prove what you got.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
# The options of a method that a plan answers to.
_PLANNED = ("p", "off_sphere", "ranking")
# The options of a ticket's retraining, plain SGD.
_SGD = ("lr", "momentum", "weight_decay", "clip", "warmup")
# The commands that several processes may share.
_SHARED = ("train", "sparsify")
# What the running command prints with; main() needs it for errors.
_out = Out()


def _version(wanted: bool) -> None:
    if wanted:
        from lpss_cli.doctor import versions

        print(versions())
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _SHARED:
        launch.refuse(f"lpss {context.invoked_subcommand}")


def _printer(values: dict[str, Any]) -> Out:
    global _out
    _out = Out(values["as_json"], values["quiet"], silent=launch.place().rank > 0)
    return _out


def _request(
    values: dict[str, Any], out: Path, method_options: dict[str, Any], base: dict[str, Any]
) -> Any:
    """Make the request of a command: what was typed wins over ``base``, a recipe's options."""
    from lpss_cli import given

    switches = ("force", "resume", "trust_pickle", "keep_init")
    return given.request(
        {name: value for name, value in values.items() if name in given.kinds()} | method_options,
        base,
        out=out,
        command=_command_line(),
        **{name: values[name] for name in switches if name in values},
    )


def _recipe(values: dict[str, Any], stage: str, out: Out) -> dict[str, Any]:
    """Return the options of the recipe that was named, if one was, and say which it is."""
    if values["recipe"] is None:
        return {}
    from lpss_cli import recipes

    recipe = recipes.read(values["recipe"])
    out.note(f"recipe {recipe.name}: {recipe.title}")
    return recipe.options(stage)


def _command_line() -> str:
    import shlex

    return shlex.join([*launch.words("lpss"), *sys.argv[1:]])


def _input(file: Path | None, out: Out) -> Path:
    """Take the file that was named, else the newest artefact here, and say which."""
    from lpss_cli.loading import newest_artifact

    if file is not None:
        return file
    found = newest_artifact(Path())
    out.note(f"reading {found}, the newest artefact here")
    return found


@app.command()
@with_options(o.TRAINING, o.RUN, o.DATA, o.ARTEFACT, o.WRITING, o.PRINTING, of_methods=True)
def train(values: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Train a network from scratch: dense by default, sparse in one run with --sparsity."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views import outcome_panel
    from lpss_cli.jobs import train as run

    printer = _printer(values)
    base = _recipe(values, "train", printer)
    request = _request(values, values["out"] or Path("model.pt"), chosen, base)
    with Printer(printer) as watcher:
        outcome = run(request, watcher)
    following = "lpss report" if outcome.report.zeros else f"lpss sparsify {request.out}"
    printer.show(outcome_panel(outcome, "trained", following))
    printer.document(outcome.to_dict())


@app.command()
@with_options(
    o.TRAINING, o.RUN, o.DATA, o.CHECKPOINT, o.ARTEFACT, o.WRITING, o.PRINTING, of_methods=True
)
def sparsify(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pt, .pth or .safetensors.")],
    values: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    """Sparse-train a checkpoint to a target sparsity (90 % by default), exactly."""
    printer = _printer(values)
    base = _recipe(values, "sparsify", printer)
    if _one_shot(file, values, base):
        _cut_file(file, values, chosen | base, printer)
        return
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views import outcome_panel
    from lpss_cli.jobs import sparsify as run

    target = values["out"] or file.with_name(f"{file.stem}.sparse.pt")
    request = _request(values, target, chosen, base)
    with Printer(printer) as watcher:
        outcome = run(file, request, watcher)
    printer.show(outcome_panel(outcome, "sparsified", "lpss report, lpss export"))
    printer.document(outcome.to_dict())


def _one_shot(file: Path, values: dict[str, Any], base: dict[str, Any]) -> bool:
    """Whether tensors without a network are to be cut once: no epochs, no --arch, no --data."""
    if {**base, **{k: v for k, v in values.items() if v is not None}}.get("epochs") != 0:
        return False
    from lpss_cli.oneshot import suits

    return values["arch"] is None and values["data"] is None and suits(file)


def _cut_file(file: Path, values: dict[str, Any], chosen: dict[str, Any], printer: Out) -> None:
    from lpss_cli.cli.file_views import cut_panel
    from lpss_cli.oneshot import cut
    from lpss_cli.targets import parse as sparsity

    named = {"--method": values["method"] not in (None, "gmp", "dense"),
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
        printer.note(f"left as they are: {', '.join(result.left)}")
    printer.show(cut_panel(result))
    printer.document(result.to_dict())


@app.command()
@with_options(o.CHECKPOINT, o.WRITING, o.PRINTING)
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
) -> None:
    """Count zeros and measure Hoyer sparsity, layer by layer."""
    from lpss_cli.cli import views
    from lpss_cli.files import check_writable
    from lpss_cli.foreign import introduce
    from lpss_cli.loading import browse
    from lpss_cli.reporting import report as measure

    printer = _printer(values)
    if csv and values["as_json"]:
        raise InputError("--csv and --json exclude each other", "choose one")
    if html is not None:
        check_writable(html, force=values["force"], option="--html")
    paths = files or [_input(None, printer)]
    checkpoints = [browse(path, trust_pickle=values["trust_pickle"]) for path in paths]
    for checkpoint in checkpoints:
        for text in (*checkpoint.notes, *introduce(checkpoint)):
            printer.note(text)
    reports = [measure(checkpoint) for checkpoint in checkpoints]
    if html is not None:
        from lpss_cli import pages

        states = [checkpoint.stream or checkpoint.state_dict for checkpoint in checkpoints]
        written = pages.write(html, list(zip(reports, states, strict=True)))
        printer.note(f"wrote {html}, {views.size(written)}")
    if csv:
        printer.text(views.csv_text(reports).rstrip("\n"))
        return
    for item in reports:
        for text in views.warnings(item):
            printer.warn(text)
        printer.show(views.layer_table(item, printer.width), views.origin_table(item))
    documents = [item.to_dict() for item in reports]
    printer.document(documents[0] if len(documents) == 1 else documents)


@app.command()
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
    """Predict, before any training: p, Hoyer sparsity and kept weights, layer by layer."""
    from lpss_cli.cli.views import plan_table
    from lpss_cli.jobs import plan_for

    printer = _printer(values)
    path = _input(file, printer) if file or not values["arch"] else None
    result = plan_for(path, _request(values, Path(), chosen, {}), hoyer, printer.note)
    printer.show(plan_table(result, printer.width))
    printer.note("Hoyer: without any pruning; 'Hoyer then': with all but the kept weights zero")
    printer.document(result.to_dict())


@app.command()
@with_options(o.DATA, o.CHECKPOINT, o.WRITING, o.PRINTING)
def export(
    values: dict[str, Any],
    file: o.File = None,
    formats: Annotated[
        str, typer.Option("--format", help="Some of safetensors,onnx,pack.")
    ] = "safetensors,onnx,pack",
    packed_values: Annotated[
        str,
        typer.Option("--values", help="Of the kept weights in the pack: fp32, fp16, bf16, int8."),
    ] = "fp16",
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", help="Where to write; default: beside FILE.")
    ] = None,
    compact: Annotated[
        bool, typer.Option(help="Remove units without input or use from the ONNX file, exactly.")
    ] = True,
    onnx_encoding: Annotated[
        str,
        typer.Option(
            help="dense, or gaps: weights stored without zeros, unfolded by the runtime at load."
        ),
    ] = "dense",
    int8: Annotated[
        bool, typer.Option("--int8", help="Write a quantised ONNX file too, and measure it.")
    ] = False,
    latency: Annotated[
        bool, typer.Option(help="Measure the time of a batch in onnxruntime.")
    ] = True,
) -> None:
    """Write masked safetensors, ONNX and a packed file, each read back from disk and compared."""
    from lpss_cli.cli.export_views import networks_table, onnx_notes, savings_table
    from lpss_cli.cli.file_views import size_table
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views import export_table
    from lpss_cli.exportjob import Options, export_file, sizes_of
    from lpss_cli.onnxjob import OnnxOptions

    printer = _printer(values)
    path = _input(file, printer)
    formats_chosen = tuple(part.strip() for part in formats.split(",") if part.strip())
    onnx = OnnxOptions(compact, onnx_encoding, int8, latency)
    options = Options(formats_chosen, packed_values, onnx)
    with printer.busy("writing, reading back and comparing"):
        request = _request(values, path, {}, {})
        written = export_file(path, request, options, out_dir, Printer(printer))
        sizes = sizes_of(path, request, written, packed_values)
    printer.show(export_table(written), *savings_table(written), *networks_table(written))
    printer.show(size_table(sizes))
    for text in onnx_notes(written):
        printer.note(text)
    document: dict[str, Any] = {"source": str(path), "files": [x.to_dict() for x in written]}
    printer.document({**document, "sizes": [x.to_dict() for x in sizes]})


@app.command()
@with_options(o.UNPACKED, o.WRITING, o.PRINTING)
def unpack(
    file: Annotated[Path, typer.Argument(help="Packed file: .lpss.")], values: dict[str, Any]
) -> None:
    """Turn a packed file back into safetensors, read back from disk and compared."""
    from lpss_cli.cli.views import export_table
    from lpss_cli.packing import unpack_file

    printer = _printer(values)
    written = unpack_file(file, values["out"], force=values["force"])
    printer.show(export_table([written]))
    printer.document({"source": str(file), "files": [written.to_dict()]})


@app.command()
@with_options(o.DATA, o.DEVICE, o.CHECKPOINT, o.PRINTING)
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The file that counts as right.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The file to compare with it.")],
    values: dict[str, Any],
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a weight that is no difference.")
    ] = 0.0,
) -> None:
    """Compare two files: weights, zeros, predictions. Exit code 0 if equal, else 1."""
    from lpss_cli.cli.file_views import verdict, verify_table
    from lpss_cli.verifying import verify_files

    printer = _printer(values)
    with printer.busy("comparing"):
        result = verify_files(a, b, _request(values, a, {}, {}), tolerance)
    printer.show(verify_table(result), verdict(result))
    printer.document(result.to_dict())
    if not result.equal:
        raise typer.Exit(1)


@app.command()
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
        ),
    ] = "rewind",
    control: Annotated[
        bool, typer.Option(help="Train a random mask of the same counts too.")
    ] = True,
) -> None:
    """Train a sparse network's mask again from its start, and compare with a random mask."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views import ticket_panel
    from lpss_cli.tickets import ticket as run

    printer = _printer(values)
    target = values["out"] or file.with_name(f"{file.stem}.ticket.pt")
    with Printer(printer) as watcher:
        result = run(
            file, _request(values, target, chosen, {}), start, control=control, watcher=watcher
        )
    printer.show(ticket_panel(result))
    printer.document(result.to_dict())


@app.command()
@with_options(o.SHARED, o.DATA, o.PRINTING)
def compare(
    values: dict[str, Any],
    method_names: Annotated[
        str, typer.Option("--methods", help="Methods, by comma; a dense run is always made.")
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
    """Train several methods alike and set them side by side, with a picture."""
    from lpss_cli.cli.views import compare_table
    from lpss_cli.comparing import Comparison
    from lpss_cli.comparing import compare as run
    from lpss_cli.plotting import accuracy_against_sparsity
    from lpss_cli.targets import parse as sparsity

    printer = _printer(values)
    what = Comparison(
        tuple(part.strip() for part in method_names.split(",") if part.strip()),
        tuple(sparsity(part.strip()) for part in sparsities.split(",") if part.strip()),
        seeds,
        tune,
    )
    request = _request(values, out_dir, {}, {})
    with printer.busy("training"):
        rows = run(what, request, out_dir, printer.note)
    title = f"{values['arch'] or 'the default network'} on {values['data'] or 'digits'}"
    picture = out_dir / "accuracy.svg"
    accuracy_against_sparsity(rows, title, picture)
    printer.show(compare_table(rows, title))
    printer.note(f"all runs: {out_dir / 'results.json'}, picture: {picture}")
    printer.document({"rows": rows, "picture": str(picture)})


@app.command("eval")
@with_options(o.DATA, o.DEVICE, o.CHECKPOINT, o.PRINTING)
def evaluate(
    values: dict[str, Any],
    file: o.File = None,
) -> None:
    """Print the metric of a checkpoint on its test split, alone."""
    from lpss_cli.cli.progress import Printer
    from lpss_cli.jobs import evaluate_file

    printer = _printer(values)
    path = _input(file, printer)
    primary, metrics = evaluate_file(path, _request(values, path, {}, {}), Printer(printer))
    if not values["as_json"]:
        printer.text(f"{metrics[primary]:.6g}")
    printer.document({"file": str(path), "primary_metric": primary, **metrics})


@app.command()
@with_options(o.PRINTING)
def doctor(values: dict[str, Any]) -> None:
    """Look at the environment: packages, devices, room. Exit code 1 if something is missing."""
    from lpss_cli.cli.file_views import findings_table
    from lpss_cli.doctor import examine

    printer = _printer(values)
    with printer.busy("looking"):
        findings = examine(Path().absolute())
    printer.show(findings_table(findings))
    printer.document({"findings": [finding.to_dict() for finding in findings]})
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _fail(what: str, do: str) -> None:
    """Print an error, once for all processes of a run."""
    if launch.place().size == 1:
        _out.error(what, do)
        return
    from lpss_cli.joining import turn

    with turn() as mine:
        if mine:
            _out.error(what, do)


def main() -> None:
    """Run the command line and exit with its code: 0, 1 (run), 2 (input), 128 + a signal's number.

    So 130 is Ctrl-C.
    """
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
        if code == 130:  # how the parser passes a Ctrl-C on
            raise KeyboardInterrupt
    except LpssError as error:
        # A signal is no failure to be looked into.
        if debug and not isinstance(error, StoppedError):
            raise
        _fail(error.what, error.do)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", "nothing was saved")
        code = 130
    except BrokenPipeError:  # `lpss report | head`
        sys.stderr.close()
        code = 0
    except Exception as error:
        # Usage errors of the parser: typer carries its own copy of click's classes.
        if debug or not hasattr(error, "format_message"):
            raise
        if not error.format_message():  # `lpss` alone: its help has been printed
            sys.exit(0)
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lpss"
        _fail(error.format_message(), f"see {command} --help")
        code = 2
    sys.exit(code or 0)
