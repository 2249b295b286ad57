"""Going on with a killed run: its state beside the artefact, in ``OUT.partial``.

The file holds ``{"identity": {...}, "state": RunState.state_dict()}``. The identity is everything
that decides the run's bits, so that a run never goes on as another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lpss_cli import torchfile
from lpss_cli.errors import InputError, one_line
from lpss_cli.files import replacing
from lpss_cli.snapshot import read_whole
from lpss_cli.state import RunState
from lpss_cli.watching import Relay, Watcher

#: Seconds between two saves at least; what a killed run loses at most, to the end of an epoch.
SAVE_EVERY = 30.0
_DO = "give the options of the killed run, or leave --resume out to start from the beginning"


def partial_of(out: Path) -> Path:
    """``model.pt`` -> ``model.pt.partial``."""
    return out.with_name(out.name + ".partial")


def find(
    path: Path, identity: Mapping[str, Any], wanted: bool, note: Callable[[str], None]
) -> dict[str, Any] | None:
    """Return the state to go on from, None for the beginning; say what is done and why.

    Args:
        path: where a killed run would have left its state.
        identity: what the run is.
        wanted: go on with a killed run.
        note: takes what a person should know.

    Raises:
        InputError: the file is broken, or of another run.
    """
    if not wanted:
        if path.exists():
            note(f"{path} is of a killed run: --resume would go on with it")
        return None
    if not path.exists():
        note(f"there is no {path}: starting from the beginning")
        return None
    state = read(path, identity)
    note(f"going on from {path}, after epoch {state['epoch']}")
    return state


def read(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved state of the run that ``identity`` describes.

    Raises:
        InputError: the file is broken, or of another run; the first difference is named.
    """
    try:
        content = torchfile.load(path, read_whole(path))
        saved, state = dict(content["identity"]), dict(content["state"])
    except Exception as error:  # whatever a broken file makes torch.load raise
        raise InputError(
            f"{path} cannot be read: {one_line(error)[:200]}",
            "remove it, or leave --resume out to start from the beginning",
        ) from error
    for name in {**identity, **saved}:
        then, now = saved.get(name), identity.get(name)
        if then != now:
            raise InputError(
                f"{path} is of another run: {name} was {then!r} there and is {now!r} here", _DO
            )
    return state


class Keeper(Relay):
    """Saves a run at the ends of its epochs.

    Args:
        path: where to save to.
        identity: what the run is; plain containers.
        inner: sees everything first.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], inner: Watcher) -> None:
        super().__init__(inner)
        self._path = path
        self._identity = dict(identity)
        self._saved = time.monotonic()

    def on_epoch(self, run: RunState) -> None:
        """Pass it on, then save if it is time; after the last epoch the artefact follows."""
        super().on_epoch(run)
        due = time.monotonic() - self._saved >= SAVE_EVERY
        if not due or run.step >= run.total_steps:
            return
        try:
            with replacing(self._path) as temporary:
                torch.save({"identity": self._identity, "state": run.state_dict()}, temporary)
        except (
            OSError,
            RuntimeError,
            InputError,
        ) as error:  # a full disk is no reason to stop a good run
            self.on_warning(f"{self._path} could not be saved: {one_line(error)}")
        self._saved = time.monotonic()
