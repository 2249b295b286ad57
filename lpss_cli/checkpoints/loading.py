"""Reading checkpoints: ours, packed, bare state_dicts, safetensors; their code never runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints import hf_folder, metadata, read_file, safetensors_file, torch_file
from lpss_cli.checkpoints.hf_folder import Described
from lpss_cli.checkpoints.packed import MalformedError, unpack
from lpss_cli.checkpoints.packed.coding import MAGIC as PACK_MAGIC
from lpss_cli.checkpoints.read_file import read_bytes
from lpss_cli.checkpoints.safetensors_file import TensorReader, can_stream
from lpss_cli.checkpoints.state_dict import find_state_dict, fold_state_dict, plan_folds
from lpss_cli.errors import InputError
from lpss_cli.utils import arrays, digest
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_NAME = 1000


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file.
        state_dict: parameters and buffers by name, on the CPU; empty where the file is streamed.
        meta: what lpss wrote beside them, checked; empty for files of other origin.
        kind: ``lpss``, ``state_dict``, ``safetensors`` or ``pack``, for people.
        notes: what was folded, stripped or ignored on the way in.
        init: the tensors that training began from, where an artefact keeps them.
        about: what an exported file says of itself, like the hash of its source.
        described: what the folder says that the file lies in, where a folder was named.
        file_bytes: size of the file.
        sha256: of the file, in hex; of a streamed one, it is not known.
        stream: where a file is streamed, its entries, read when they are asked for.
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
    stream: TensorReader | None = None

    @property
    def forms(self) -> Mapping[str, TensorSpec]:
        """Shape and kind of numbers of all entries by name, streamed or not."""
        return self.state_dict if self.stream is None else self.stream.specs

    def array(self, name: str) -> arrays.Array:
        """Return the values of one entry, streamed or not."""
        return arrays.to_numpy(self.state_dict[name]) if self.stream is None else self.stream[name]


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
    data = read_bytes(path)
    read_file.refuse_other_formats(path, data)
    if data.startswith(PACK_MAGIC):
        checkpoint = _from_pack(path, data)
    elif data[8:9] == b"{" and data[:4] != b"PK\x03\x04":
        checkpoint = _from_safetensors(path, data)
    else:
        checkpoint = _interpret(path, torch_file.load(path, data, trust_pickle=trust_pickle))
    checkpoint.file_bytes, checkpoint.sha256 = len(data), hashlib.sha256(data).hexdigest()
    _check_tensors(checkpoint)
    if checkpoint.meta:
        # What lpss wrote has the names of its own network, wrapped or not: no folding.
        parts = {"state_dict": checkpoint.state_dict, "init": checkpoint.init}
        checkpoint.meta, checkpoint.notes = metadata.verify(
            path, checkpoint.meta, parts, checkpoint.forms
        )
    else:
        checkpoint.state_dict, notes = fold_state_dict(checkpoint.state_dict)
        checkpoint.notes += notes
    return checkpoint


def browse(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint, the tensors of a safetensors file one at a time and when asked for.

    So the file may be larger than memory; other kinds, and files in which parts of a weight are
    kept apart, are read as :func:`read` does.

    Raises:
        InputError: see :func:`read`.
    """
    if not can_stream(path):
        return read(path, trust_pickle=trust_pickle)
    streamed = TensorReader(path)
    meta, about = _texts(path, streamed.metadata)
    _check_names(streamed.specs, path)
    checkpoint = Checkpoint(path, {}, kind="safetensors", about=about, stream=streamed)
    checkpoint.file_bytes = streamed.file_bytes
    if meta:
        parts = {"state_dict": streamed, "init": None}
        checkpoint.meta, checkpoint.notes = metadata.verify(path, meta, parts, streamed.specs)
        return checkpoint
    folds, checkpoint.notes = plan_folds(streamed.specs)
    if any(fold.combine for fold in folds.values()):
        return read(path, trust_pickle=trust_pickle)  # a weight is put together from others
    checkpoint.stream = streamed.renamed({name: fold.sources[0] for name, fold in folds.items()})
    return checkpoint


def _from_folder(path: Path) -> Checkpoint:
    found = hf_folder.describe(path)
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
    from torch import nn

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
    nested, notes = find_state_dict(content, path)
    return Checkpoint(path, _tensors(nested, path), notes=notes)


def _from_safetensors(path: Path, data: bytes) -> Checkpoint:
    tensors, texts = safetensors_file.load(path, data)
    meta, about = _texts(path, texts)
    _check_names(tensors, path)
    return Checkpoint(path, tensors, meta, "safetensors", about=about)


def _texts(path: Path, texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the record in a safetensors file's metadata, not checked yet, and the other texts.

    Raises:
        InputError: a record of ours cannot be read.
    """
    try:
        meta = json.loads(texts.get("lpss", "{}"))
    except (ValueError, RecursionError):
        meta = None
    sealed = any(digest.MANIFEST_KEY in text for text in texts.values())
    if sealed and (not isinstance(meta, dict) or "lpss" not in texts):
        raise InputError(f"{path} is damaged: its record cannot be read", metadata.REMEDY)
    found = meta if isinstance(meta, dict) else {}
    return found, {key: text for key, text in texts.items() if key != "lpss"}


def _from_pack(path: Path, data: bytes) -> Checkpoint:
    try:
        found = unpack(data)
    except MalformedError as error:
        raise InputError(f"{path} is a damaged pack: {error}", "make it again") from None
    return Checkpoint(path, found.state_dict, found.meta, "pack", about=found.about)


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse what looks like a tensor and cannot be computed with."""
    from torch import strided

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
    from torch import Tensor

    entries = content if isinstance(content, Mapping) else {}
    tensors = {name: t for name, t in entries.items() if isinstance(t, Tensor)}
    _check_names(tensors, path)
    return tensors


def _check_names(entries: Mapping[Any, object], path: Path) -> None:
    """Refuse a file without tensors, or with names that are no texts.

    Raises:
        InputError: it is one.
    """
    if not entries or not all(map(_is_name, entries)):
        raise InputError(f"{path} holds no state_dict", "save model.state_dict() with torch.save")


def _is_name(name: object) -> bool:
    """Whether a name is a text that can be written into any file."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)
