"""What every command begins with: a printer, a request, the file that is meant."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

from lpss_cli.cli.console import Out
from lpss_cli.distributed import launch

# What the running command prints with: errors go the same way.
_current = Out()


def printer(values: dict[str, Any]) -> Out:
    """Make what the command prints with."""
    global _current
    _current = Out(values["as_json"], values["quiet"], silent=launch.place().rank > 0)
    return _current


def fail(what: str, do: str) -> None:
    """Print an error, once for all processes of a run."""
    if launch.place().size == 1:
        _current.error(what, do)
        return
    from lpss_cli.distributed.process_group import turn

    with turn() as mine:
        if mine:
            _current.error(what, do)


def load_torch() -> None:
    """Import PyTorch, and tell Python that what comes with it is no garbage.

    It stays to the end, where a look through all of it would take a fifth of a short command's
    time. Not for commands that load more extensions later: some complain of what is left then.
    """
    if "torch" not in sys.modules:
        import torch  # noqa: F401  # for what follows

        gc.freeze()


def request(
    values: dict[str, Any], out: Path, method_options: dict[str, Any], base: dict[str, Any]
) -> Any:
    """Make the request of a command: what was typed wins over ``base``, a recipe's options."""
    from lpss_cli.jobs import config

    switches = ("force", "resume", "trust_pickle", "keep_init", "log", "tensorboard")
    return config.make_request(
        {name: value for name, value in values.items() if name in config.option_types()}
        | method_options,
        base,
        out=out,
        command=command_line(),
        **{name: values[name] for name in switches if name in values},
    )


def recipe(values: dict[str, Any], stage: str, out: Out) -> dict[str, Any]:
    """Return the options of the recipe that was named, if one was, and say which it is."""
    if values["recipe"] is None:
        return {}
    from lpss_cli.jobs import recipes

    found = recipes.read(values["recipe"])
    out.note(f"recipe {found.name}: {found.title}")
    return found.options(stage)


def command_line() -> str:
    """Return what was typed, quoted for a shell."""
    import shlex

    return shlex.join([*launch.words("lpss"), *sys.argv[1:]])


def input_file(file: Path | None, out: Out) -> Path:
    """Take the file that was named, else the newest artefact here, and say which."""
    from lpss_cli.checkpoints.artifact import newest_artifact

    if file is not None:
        return file
    found = newest_artifact(Path())
    out.note(f"reading {found}, the newest artefact here")
    return found


def beside(file: Path, suffix: str) -> Path:
    """``weights.pt`` -> ``weights.sparse.pt``; a folder keeps its whole name, and ``.`` has one."""
    if not file.name:
        return Path(file.absolute().name + suffix)
    return file.with_name((file.name if file.is_dir() else file.stem) + suffix)
