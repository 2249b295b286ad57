"""A recipe for a network: what ``lpss sparsify`` would do with it, written down to be changed.

What is written is what was typed, and the choices that follow from the network and the data.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpss_cli import recipes
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data.spec import DATA_DIR_VARIABLE
from lpss_cli.errors import InputError, RunError
from lpss_cli.method import Method, make
from lpss_cli.planning import plan
from lpss_cli.recipes.text import commented
from lpss_cli.runs import given
from lpss_cli.runs.request import Request, check
from lpss_cli.runs.resolving import SPARSIFY_BUDGET, SPARSITY, restore, settings_for, sparsity_of
from lpss_cli.starting import Settings
from lpss_cli.utils.files import output, replacing
from lpss_cli.weights import trainable

_STAGE = "sparsify"


@dataclass(frozen=True)
class Draft:
    """A recipe that was written.

    Attributes:
        path: of the recipe.
        command: that runs it.
        options: what it says, by name.
    """

    path: Path
    command: str
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"recipe": str(self.path), "command": self.command, "options": dict(self.options)}


def draft(
    path: Path,
    request: Request,
    typed: Mapping[str, Any],
    note: Callable[[str], None] = lambda _: None,
) -> Draft:
    """Write a recipe for a checkpoint to ``request.out``; read back, it is checked as any recipe.

    The network and its data are loaded, so that what is written runs as it is.

    Args:
        path: the checkpoint.
        request: of sparsifying it.
        typed: the options that the request was made of.
        note: told what was found out.

    Raises:
        InputError: whatever ``lpss sparsify`` would refuse before any training; the recipe exists
            already, or its name does not end in ``.toml``.
    """
    check(request)
    if request.out.suffix != ".toml":
        raise InputError(f"{request.out} is no name of a recipe", "let --out end in .toml")
    method = make(request.method or "lpss", request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for text in checkpoint.notes:
        note(text)
    with output(request.out, force=request.force):
        model, arch, data = restore(checkpoint, request, note)
        weights = trainable(model)
        sparsity = sparsity_of(request, weights, SPARSITY)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET)
        planned = plan(
            arch,
            weights,
            sparsity=sparsity,
            options={"ranking": method.config.ranking},
            layers=request.layer,
            skip=request.skip,
        )
        options = _chosen(request, checkpoint, arch, method, settings) | _given(typed)
        command = _command(path, request)
        text = commented(path, command, method, options, weights, planned, len(data.train))
        return _write(request, text, command, options)


def _chosen(
    request: Request, checkpoint: Checkpoint, arch: str, method: Method, settings: Settings
) -> dict[str, Any]:
    """Return what would be done, by the names of the options."""
    # Of its own artefacts lpss knows the data; a name that is not theirs would lose the rest.
    own = (checkpoint.meta.get("data") or {}).get("name")
    chosen = {
        "arch": arch,
        "data": request.data or own,
        "method": method.name,
        "sparsity": settings.sparsity if request.target_drop is None else None,  # to be found
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _given(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed; a folder that the environment names is none of them."""
    found = given.check({k: v for k, v in typed.items() if v != []})
    if found.get("data_dir") == os.environ.get(DATA_DIR_VARIABLE):
        found.pop("data_dir", None)
    return found


def _command(path: Path, request: Request) -> str:
    words = ["lpss", _STAGE, str(path), "--recipe", str(request.out)]
    return shlex.join(words + ["--trust-pickle"] * request.trust_pickle)


def _write(request: Request, text: str, command: str, options: Mapping[str, Any]) -> Draft:
    """Write the text if it is a recipe that says what was meant."""
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8
        raise InputError(
            f"{request.out} would hold a name that is no text", "rename the file, or use a link"
        ) from None
    said = recipes.loads(request.out, content).options(_STAGE)
    if said != given.check(options):
        raise RunError(
            f"{request.out} would not say what was asked for", "this is a defect; please report it"
        )
    with replacing(request.out) as temporary:
        temporary.write_bytes(content)
    return Draft(request.out, command, said)
