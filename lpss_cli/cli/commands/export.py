"""``lpss export``."""

from __future__ import annotations

from dataclasses import replace

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.options import File
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.export.options import ExportOptions, OnnxOptions
from lpss_cli.jobs.config import ExportFolder, NetworkOptions, OutputOptions
from lpss_cli.utils.options import only


@with_options(
    ExportOptions, ExportFolder, OnnxOptions, NetworkOptions, DataSpec, only(OutputOptions, "force")
)
def export(out: Out, typed: Typed, file: File = None) -> None:
    """Write safetensors, ONNX and a packed file, each read back.

    What is read back from disk is compared with the network; a file that differs is not kept.
    """
    from lpss_cli.cli.progress import Printer
    from lpss_cli.cli.views.export import export_tables, onnx_notes
    from lpss_cli.jobs.export import export as export_checkpoint

    options = replace(typed.of(ExportOptions), onnx=typed.of(OnnxOptions))
    folder = typed.of(ExportFolder).out_dir
    with out.busy("writing, reading back and comparing"):
        result = export_checkpoint(file, typed.request(), options, folder, Printer(out))
    out.show(*export_tables(result))
    for text in onnx_notes(result.files):
        out.note(text)
    out.document(result.to_dict())
