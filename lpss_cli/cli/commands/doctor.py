"""``lpss doctor``."""

from __future__ import annotations

from pathlib import Path

import typer

from lpss_cli.cli.console import Out
from lpss_cli.cli.context import Typed
from lpss_cli.cli.parser import with_options


@with_options()
def doctor(out: Out, typed: Typed) -> None:
    """Look at the environment: packages, devices, room. Exit code 1 if something is missing."""
    from lpss_cli.cli.views.files import findings_table
    from lpss_cli.jobs.doctor import examine

    with out.busy("looking"):
        findings = examine(Path().absolute())
    out.show(findings_table(findings))
    out.document({"findings": [finding.to_dict() for finding in findings]})
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)
