"""``lpss verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options
from lpss_cli.data.spec import DataSpec
from lpss_cli.jobs.config import ComputeOptions, NetworkOptions, VerifyOptions
from lpss_cli.utils.options import only


@with_options(VerifyOptions, NetworkOptions, DataSpec, only(ComputeOptions, "device"))
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="The file that counts as right.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The file to compare with it.")],
    out: Out,
    typed: Typed,
) -> None:
    """Compare two files: weights, zeros, predictions. Exit code 0 if equal, else 1.

    B may be an ONNX file; its predictions are compared.
    """
    from lpss_cli.cli.views.files import verdict, verify_table
    from lpss_cli.jobs.verify import verify_files

    with out.busy("comparing"):
        result = verify_files(a, b, typed.request(), typed.of(VerifyOptions).tolerance)
    out.show(*([verify_table(result)] if result.tensors else []), verdict(result))
    out.document(result.to_dict())
    if not result.equal:
        raise typer.Exit(1)
