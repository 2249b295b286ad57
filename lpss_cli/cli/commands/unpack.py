"""``lpss unpack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.jobs.config import OutputOptions


@with_options(OutputOptions)
def unpack(
    file: Annotated[Path, typer.Argument(help="Packed file: .lpss.")], out: Out, typed: Typed
) -> None:
    """Turn a packed file back into safetensors, and compare them."""
    from lpss_cli.cli.views.export import export_table
    from lpss_cli.export.pack import unpack_file

    wanted = typed.of(OutputOptions)
    written = unpack_file(file, wanted.out, force=wanted.force)
    out.show(export_table([written]))
    out.document({"source": str(file), "files": [written.to_dict()]})
