"""Reading checkpoints: ours, packed, bare state_dicts, safetensors; their code never runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.errors import InputError
from lpss_cli.folding import fold
from lpss_cli.packed import MAGIC, MalformedError, unpack

_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file.
        state_dict: parameters and buffers by name, on the CPU.
        meta: what lpss wrote beside them; empty for files of other origin.
        kind: ``lpss``, ``state_dict``, ``safetensors`` or ``pack``, for people.
        notes: what was folded or stripped on the way in.
        init: the tensors that training began from, where an artefact keeps them.
        about: what an exported file says of itself, like the hash of its source.
    """

    path: Path
    state_dict: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = "state_dict"
    notes: list[str] = field(default_factory=list)
    init: dict[str, Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)


def read(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint of any accepted kind.

    Args:
        path: an lpss artefact, a ``torch.save`` file, a safetensors file or a packed ``.lpss``,
            told apart by content.
        trust_pickle: unpickle arbitrary objects; only for files of trusted origin.

    Raises:
        InputError: no such file, not a checkpoint, damaged, or it needs code to load.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}", "check the path; `lpss train` makes model.pt")
    if not path.is_file():
        raise InputError(f"{path} is not a file", "give a .pt, .pth, .safetensors or .lpss file")
    if _is_packed(path):
        return _read_packed(path)
    if _is_safetensors(path):
        checkpoint = _read_safetensors(path)
    else:
        checkpoint = _interpret(path, _torch_load(path, trust_pickle))
    # What lpss wrote has the names of its own network, wrapped or not.
    if not checkpoint.meta:
        checkpoint.state_dict, checkpoint.notes = fold(checkpoint.state_dict)
    return checkpoint


def _interpret(path: Path, content: Any) -> Checkpoint:
    """Find the state_dict in whatever ``torch.load`` gave."""
    if isinstance(content, nn.Module):
        return Checkpoint(path, dict(content.state_dict()), kind="pickled module")
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, not a state_dict",
            "save model.state_dict() with torch.save",
        )
    meta = content.get("lpss")
    if isinstance(meta, Mapping):
        init = _tensors(content["init"], path) if content.get("init") is not None else None
        state = _tensors(content.get("state_dict"), path)
        return Checkpoint(path, state, dict(meta), "lpss", init=init)
    nested = next((content[k] for k in _NESTED if isinstance(content.get(k), Mapping)), content)
    return Checkpoint(path, _tensors(nested, path))


def is_artifact(path: Path) -> bool:
    """Whether a file is an lpss artefact, by a look at its first bytes of pickled structure."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as pickled:
                return b"X\x04\x00\x00\x00lpss" in pickled.read(64)  # the text, pickled
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def newest_artifact(directory: Path) -> Path:
    """Return the lpss artefact (``*.pt``) that was written last in a directory.

    Raises:
        InputError: there is none.
    """
    found = [p for p in directory.glob("*.pt") if p.is_file() and is_artifact(p)]
    if not found:
        raise InputError(
            f"there is no lpss artefact in {directory}", "name a file, or run `lpss train` first"
        )
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name))


def load_into(model: nn.Module, checkpoint: Checkpoint, arch: str) -> None:
    """Copy the checkpoint's tensors into a model.

    Raises:
        InputError: keys or shapes that do not fit, with the first few of them.
    """
    own = model.state_dict()
    theirs = checkpoint.state_dict
    problems = [f"{n} is missing" for n in own if n not in theirs]
    problems += [f"{n} is unknown" for n in theirs if n not in own]
    problems += [
        f"{n} has shape {tuple(theirs[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in theirs and own[n].shape != theirs[n].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{checkpoint.path} does not fit {arch}: {'; '.join(problems[:3])}{more}",
            "give the --arch and --data the checkpoint was made with",
        )
    for name, tensor in theirs.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise InputError(
                f"{checkpoint.path}: {name} holds {count} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )
    model.load_state_dict(theirs)


def _torch_load(path: Path, trust_pickle: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to programmers about old pickles
            # Explicit: an environment variable can switch PyTorch's own default off.
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|type:?|class) ([\w.]+)", str(error))
        if culprit is not None and _from_torch(path):
            raise InputError(
                f"{path} holds pickled objects ({culprit[1]}), and loading them could run any code",
                "save model.state_dict() instead, or pass --trust-pickle if you trust its origin",
            ) from None
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be unpickled: {_reason(error)}",
            "run lpss where that code can be imported, or save model.state_dict() instead",
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read: {_reason(error)}", "the file may be damaged"
        ) from None
    except Exception:  # a pickle of random bytes can fail in any way
        pass
    raise InputError(
        f"{path} is not a readable checkpoint", "give a torch.save or safetensors file"
    )


def _from_torch(path: Path) -> bool:
    """Whether a file begins like one of ``torch.save``: a zip archive, or before 1.6 a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    size = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and 2 <= size <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> Checkpoint:
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # (safe_open is no mapping: it has keys() and cannot be iterated)
            about = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is a damaged safetensors file: {error}", "make it again"
        ) from None
    try:
        meta = json.loads(about.pop("lpss", "{}"))
    except json.JSONDecodeError:
        meta = {}
    meta = meta if isinstance(meta, dict) else {}
    return Checkpoint(path, tensors, meta, "safetensors", about=about)


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_packed(path: Path) -> Checkpoint:
    try:
        found = unpack(path.read_bytes())
    except MalformedError as error:
        raise InputError(f"{path} is a damaged pack: {error}", "make it again") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {_reason(error)}", "the file may be damaged"
        ) from None
    return Checkpoint(path, found.state_dict, found.meta, "pack", about=found.about)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Keep the tensors of a mapping, in order.

    Raises:
        InputError: there is none, or a name is no text.
    """
    tensors = (
        {name: t for name, t in content.items() if isinstance(t, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise InputError(f"{path} holds no state_dict", "save model.state_dict() with torch.save")
    return tensors
