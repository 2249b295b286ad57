"""Make the pictures of the README: a terminal and a report page, of a run on the digits.

    python docs/make_pictures.py [--browser chromium]

Writes docs/pictures/terminal.svg and docs/pictures/report.png; the latter needs Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 88
COMMANDS = ("train", "sparsify model.pt --p 0.5", "report")


def run(arguments: list[str], folder: Path, color: bool = False) -> str:
    """Run lpss in a folder and return what a terminal would show."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
    if color:
        environment |= {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-m", "lpss_cli", *arguments],
        cwd=folder, env=environment, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout


def terminal(folder: Path) -> None:
    """Draw the first commands of the README and their output."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    for command in COMMANDS:
        console.print(Text(f"$ lpss {command}", style="bold"))
        console.print(Text.from_ansi(run(command.split(), folder, color=True).rstrip()))
        console.print()
    console.save_svg(str(PICTURES / "terminal.svg"), title="lpss")


def page(folder: Path, browser: str) -> None:
    """Draw the HTML report of the sparse network in a window as wide as a laptop's."""
    run(["report", "model.sparse.pt", "--html", "report.html", "--quiet"], folder)
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={folder / 'profile'}", "--window-size=1100,1180",
         f"--screenshot={PICTURES / 'report.png'}", (folder / "report.html").as_uri()],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = shutil.which("chromium") or shutil.which("google-chrome")
    parser.add_argument("--browser", default=found)
    given = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        terminal(Path(name))
        if given.browser is None:
            raise SystemExit("Chromium was not found, so there is no report.png; pass --browser")
        page(Path(name), given.browser)


if __name__ == "__main__":
    main()
