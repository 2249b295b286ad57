"""Reading checkpoints: ours, packed, bare state_dicts, safetensors; their code never runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn, strided

from lpss_cli.checkpoints import kinds, manifest, modelfolder, record, safetensorsfile, torchfile
from lpss_cli.checkpoints.folding import fold
from lpss_cli.checkpoints.modelfolder import Described
from lpss_cli.checkpoints.snapshot import opened, read_whole
from lpss_cli.checkpoints.streaming import Renamed, Streamed
from lpss_cli.errors import InputError
from lpss_cli.packed import MAGIC, MalformedError, unpack

_NESTED = ("state_dict", "model_state_dict", "model")
_LONGEST_NAME = 1000


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file.
        state_dict: parameters and buffers by name, on the CPU.
        meta: what lpss wrote beside them, checked; empty for files of other origin.
        kind: ``lpss``, ``state_dict``, ``safetensors`` or ``pack``, for people.
        notes: what was folded, stripped or ignored on the way in.
        init: the tensors that training began from, where an artefact keeps them.
        about: what an exported file says of itself, like the hash of its source.
        described: what the folder says that the file lies in, where a folder was named.
        file_bytes: size of the file.
        sha256: of the file, in hex; of a streamed one, it is not known.
        stream: where a file is streamed, its tensors, read when they are asked for; ``state_dict``
            holds stand-ins on PyTorch's ``meta`` device then.
    """

    path: Path
    state_dict: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = "state_dict"
    notes: list[str] = field(default_factory=list)
    init: dict[str, Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    described: Described | None = None
    file_bytes: int = 0
    sha256: str = ""
    stream: Mapping[str, Tensor] | None = None

    def tensor(self, name: str) -> Tensor:
        """Return the values of one entry of the state_dict."""
        return self.state_dict[name] if self.stream is None else self.stream[name]


def read(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint of any accepted kind, told apart by content.

    Args:
        path: an lpss artefact, a ``torch.save`` file, a safetensors file or a packed ``.lpss``; or
            a folder of the Hugging Face Hub.
        trust_pickle: unpickle arbitrary objects; only for files of trusted origin.

    Raises:
        InputError: no such file, not a checkpoint, damaged, it asks for more memory than it
            holds, or it needs code to load.
    """
    if os.path.isdir(path):  # Path.is_dir fails on names that are too long
        return _from_folder(path)
    data = read_whole(path)
    kinds.refuse_others(path, data)
    if data.startswith(MAGIC):
        checkpoint = _from_pack(path, data)
    elif data[8:9] == b"{" and data[:4] != b"PK\x03\x04":
        checkpoint = _from_safetensors(path, data)
    else:
        checkpoint = _interpret(path, torchfile.load(path, data, trust_pickle=trust_pickle))
    checkpoint.file_bytes, checkpoint.sha256 = len(data), hashlib.sha256(data).hexdigest()
    _check_tensors(checkpoint)
    if checkpoint.meta:
        # What lpss wrote has the names of its own network, wrapped or not: no folding.
        parts = {"state_dict": checkpoint.state_dict, "init": checkpoint.init}
        checkpoint.meta, checkpoint.notes = record.verify(path, checkpoint.meta, parts)
    else:
        checkpoint.state_dict, checkpoint.notes = fold(checkpoint.state_dict)
    return checkpoint


def browse(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint, the tensors of a safetensors file one at a time and when asked for.

    So the file may be larger than memory; other kinds, and files in which parts of a weight are
    kept apart, are read as :func:`read` does.

    Raises:
        InputError: see :func:`read`.
    """
    if os.path.isdir(path):
        return read(path, trust_pickle=trust_pickle)
    with opened(path) as file:
        head = file.read(9)
    if head[8:] != b"{" or not _is_safetensors(path, head):
        return read(path, trust_pickle=trust_pickle)
    streamed = Streamed(path)
    checkpoint = _described(path, streamed.shapes, streamed.texts)
    checkpoint.file_bytes, checkpoint.stream = streamed.bytes, streamed
    if checkpoint.meta:
        parts = {"state_dict": streamed, "init": None}
        checkpoint.meta, checkpoint.notes = record.verify(
            path, checkpoint.meta, parts, streamed.shapes
        )
        return checkpoint
    checkpoint.state_dict, checkpoint.notes = fold(streamed.shapes)
    own = {id(stand_in): name for name, stand_in in streamed.shapes.items()}
    if any(id(stand_in) not in own for stand_in in checkpoint.state_dict.values()):
        return read(path, trust_pickle=trust_pickle)  # a weight is put together from others
    names = {name: own[id(stand_in)] for name, stand_in in checkpoint.state_dict.items()}
    checkpoint.stream = Renamed(streamed, names)
    return checkpoint


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file whose ninth byte is ``{`` is of no other kind."""
    kinds.refuse_others(path, head)
    return not head.startswith(MAGIC) and head[:4] != b"PK\x03\x04"


def _from_folder(path: Path) -> Checkpoint:
    found = modelfolder.describe(path)
    if not found.fit.arch.startswith("hf:"):
        return replace(read(found.weights), path=path, described=found, kind="folder of timm")
    from lpss_cli.models import huggingface

    state = huggingface.weights(path)
    data = found.weights.read_bytes()
    checkpoint = Checkpoint(path, state, kind="folder of transformers", described=found)
    checkpoint.file_bytes, checkpoint.sha256 = len(data), hashlib.sha256(data).hexdigest()
    _check_tensors(checkpoint)
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


def _from_safetensors(path: Path, data: bytes) -> Checkpoint:
    return _described(path, *safetensorsfile.load(path, data))


def _described(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Checkpoint:
    """Return what a safetensors file holds, with the record in its texts not checked yet."""
    try:
        meta = json.loads(texts.get("lpss", "{}"))
    except (ValueError, RecursionError):
        meta = None
    sealed = any(manifest.KEY in text for text in texts.values())
    if sealed and (not isinstance(meta, dict) or "lpss" not in texts):
        raise InputError(f"{path} is damaged: its record cannot be read", record.AGAIN)
    found = meta if isinstance(meta, dict) else {}
    about = {key: text for key, text in texts.items() if key != "lpss"}
    return Checkpoint(path, _tensors(tensors, path), found, "safetensors", about=about)


def _from_pack(path: Path, data: bytes) -> Checkpoint:
    try:
        found = unpack(data)
    except MalformedError as error:
        raise InputError(f"{path} is a damaged pack: {error}", "make it again") from None
    return Checkpoint(path, found.state_dict, found.meta, "pack", about=found.about)


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse what looks like a tensor and cannot be computed with."""
    for name, tensor in (*checkpoint.state_dict.items(), *(checkpoint.init or {}).items()):
        if tensor.layout is not strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(
                f"{checkpoint.path}: {name} is a quantized, sparse or absent tensor",
                "save the plain floating-point weights",
            )


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
    if not tensors or not all(map(_is_name, tensors)):
        raise InputError(f"{path} holds no state_dict", "save model.state_dict() with torch.save")
    return tensors


def _is_name(name: object) -> bool:
    """Whether a name is a text that can be written into any file."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)
