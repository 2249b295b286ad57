"""Commands that write a checkpoint in another form: export, unpack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lpss_cli.cli import context as run
from lpss_cli.cli import options as o
from lpss_cli.cli.completion import among, listed
from lpss_cli.cli.parser import with_options

_Formats = Annotated[
    str,
    typer.Option(
        "--format",
        help="Some of safetensors,onnx,pack.",
        autocompletion=listed(lambda: ("safetensors", "onnx", "pack")),
    ),
]
_Values = Annotated[
    str,
    typer.Option(
        "--values",
        help="Of the kept weights in the pack: fp32, fp16, bf16, int8.",
        autocompletion=among(("fp32", "fp16", "bf16", "int8")),
    ),
]
_OutDir = Annotated[
    Path | None, typer.Option("--out-dir", help="Where to write; default: beside FILE.")
]
_Compact = Annotated[
    bool, typer.Option(help="Remove units without input or use from the ONNX file, exactly.")
]
_Clean = Annotated[
    bool,
    typer.Option(
        "--clean", help="Zero weights and biases that reach no output first, in all files."
    ),
]
_Encoding = Annotated[
    str,
    typer.Option(
        help="dense, or gaps: weights stored without zeros, unfolded by the runtime at load.",
        autocompletion=among(("dense", "gaps")),
    ),
]
_Int8 = Annotated[
    bool, typer.Option("--int8", help="Write a quantised ONNX file too, and measure it.")
]
_Latency = Annotated[bool, typer.Option(help="Measure the time of a batch in onnxruntime.")]


@with_options(o.DATA, o.CHECKPOINT, o.WRITING, o.PRINTING)
def export(
    values: dict[str, Any],
    file: o.File = None,
    formats: _Formats = "safetensors,onnx,pack",
    packed_values: _Values = "fp16",
    out_dir: _OutDir = None,
    compact: _Compact = True,
    clean: _Clean = False,
    onnx_encoding: _Encoding = "dense",
    int8: _Int8 = False,
    latency: _Latency = True,
) -> None:
    """Write safetensors, ONNX and a packed file, each read back.

    What is read back from disk is compared with the network; a file that differs is not kept.
    """
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.export import export_table, networks_table, onnx_notes, savings_table
    from lpss_cli.cli.views.files import size_table
    from lpss_cli.export.onnx.pipeline import OnnxOptions
    from lpss_cli.jobs.export import Options, export_file, sizes_of

    printer = run.printer(values)
    path = run.input_file(file, printer)
    formats_chosen = tuple(part.strip() for part in formats.split(",") if part.strip())
    onnx = OnnxOptions(compact, onnx_encoding, int8, latency)
    options = Options(formats_chosen, packed_values, onnx, clean)
    with printer.busy("writing, reading back and comparing"):
        request = run.request(values, path, {}, {})
        written = export_file(path, request, options, out_dir, Printer(printer))
        sizes = sizes_of(path, request, written)
    printer.show(export_table(written), *savings_table(written), *networks_table(written))
    printer.show(size_table(sizes))
    for text in onnx_notes(written):
        printer.note(text)
    document: dict[str, Any] = {"source": str(path), "files": [x.to_dict() for x in written]}
    printer.document({**document, "sizes": [x.to_dict() for x in sizes]})


@with_options(o.UNPACKED, o.WRITING, o.PRINTING)
def unpack(
    file: Annotated[Path, typer.Argument(help="Packed file: .lpss.")], values: dict[str, Any]
) -> None:
    """Turn a packed file back into safetensors, and compare them."""
    from lpss_cli.cli.views.export import export_table
    from lpss_cli.export.pack import unpack_file

    printer = run.printer(values)
    written = unpack_file(file, values["out"], force=values["force"])
    printer.show(export_table([written]))
    printer.document({"source": str(file), "files": [written.to_dict()]})
