"""Options of what is written and printed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lpss_cli.cli.options import declaring
from lpss_cli.cli.options.declaring import OUTPUT, Group

flag = partial(declaring.flag, panel=OUTPUT)
switch = partial(declaring.switch, panel=OUTPUT)

ARTEFACT: Group = {
    "out": flag(Path, "--out", "-o", help="Artefact to write. Default: model.pt, FILE.sparse.pt."),
}
DRAFT: Group = {
    "out": flag(Path, "--out", "-o", help="Recipe to write. Default: recipe.toml."),
}
UNPACKED: Group = {
    "out": flag(Path, "--out", "-o", help="File to write. Default: FILE.safetensors."),
}
WRITING: Group = {
    "force": switch("--force", "-f", help="Replace existing outputs."),
}
PRINTING: Group = {
    "as_json": switch("--json", help="Print one JSON document on stdout."),
    "quiet": switch("--quiet", "-q", help="No notes and no bars."),
    "debug": switch("--debug", help="Show tracebacks."),
}
