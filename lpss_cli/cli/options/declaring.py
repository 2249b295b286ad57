"""How an option of the command line is declared: its type, its flags, its help and its panel."""

from __future__ import annotations

from typing import Annotated, Any

import typer

#: Options by parameter name, in the order of the help: (type, default).
Group = dict[str, tuple[Any, Any]]
#: The panels of the help.
TRAINING, NETWORK, OUTPUT = "Training", "Data and network", "Output"


def option(*names: str, help: str, panel: str, **more: Any) -> Any:
    """Declare one flag in a panel of the help; the help names its default itself."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


def flag(kind: Any, *names: str, help: str, panel: str, **more: Any) -> tuple[Any, Any]:
    """Declare a flag that takes a value of this kind; None where it is not given."""
    return Annotated[kind | None, option(*names, help=help, panel=panel, **more)], None


def switch(*names: str, help: str, panel: str) -> tuple[Any, Any]:
    """Declare a flag that takes no value; False where it is not given."""
    return Annotated[bool, option(*names, help=help, panel=panel)], False
