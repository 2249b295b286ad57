"""The command line: its commands, in the order of its help, and its exit codes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lpss_cli.cli import context as running
from lpss_cli.cli.commands.compare import compare
from lpss_cli.cli.commands.doctor import doctor
from lpss_cli.cli.commands.eval import evaluate
from lpss_cli.cli.commands.export import export
from lpss_cli.cli.commands.init import init
from lpss_cli.cli.commands.plan import plan
from lpss_cli.cli.commands.report import report
from lpss_cli.cli.commands.sparsify import sparsify
from lpss_cli.cli.commands.ticket import ticket
from lpss_cli.cli.commands.train import train
from lpss_cli.cli.commands.unpack import unpack
from lpss_cli.cli.commands.verify import verify
from lpss_cli.cli.parser import Command
from lpss_cli.distributed import launch
from lpss_cli.errors import LpssError, StoppedError


class _Root(TyperGroup):
    """The list of commands, in plain text: importing the printer of panels takes longer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "rich_markup_mode": None})


# The commands that several processes may share.
_SHARED = ("train", "sparsify")

app = typer.Typer(
    name="lpss",
    cls=_Root,
    help="Make PyTorch networks sparse, and prove what you got.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _command in (train, sparsify, init, report, plan, export, unpack, verify, ticket, compare):
    app.command(cls=Command)(_command)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from lpss_cli.jobs.doctor import versions

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


def main() -> None:
    """Run the command line and exit with its code: 0, 1 (run), 2 (input), 128 + a signal's number.

    So 130 is Ctrl-C.
    """
    debug = "--debug" in sys.argv
    running.start(as_json="--json" in sys.argv, quiet=False)  # for errors of the parser
    try:
        code = app(standalone_mode=False)
        if code == 130:  # how the parser passes a Ctrl-C on
            raise KeyboardInterrupt
    except LpssError as error:
        # A signal is not a failure to be looked into.
        if debug and not isinstance(error, StoppedError):
            raise
        running.fail(error.what, error.do)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        running.fail("interrupted", "nothing was saved")
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
        running.fail(error.format_message(), f"see {command} --help")
        code = 2
    sys.exit(code or 0)
