"""Reading checkpoints of every kind: lpss artifacts, packs, bare state_dicts, safetensors, folders.

No code that a checkpoint names or holds is run, unless the user trusts its pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints import metadata, read_file, safetensors_file, torch_file
from lpss_cli.checkpoints.packed import MalformedError, unpack
from lpss_cli.checkpoints.packed.coding import MAGIC as PACK_MAGIC
from lpss_cli.checkpoints.read_file import read_bytes
from lpss_cli.checkpoints.safetensors_file import TensorReader, can_stream
from lpss_cli.checkpoints.state_dict import find_state_dict, fold_state_dict, plan_folds
from lpss_cli.errors import InputError
from lpss_cli.models import family_of
from lpss_cli.utils import arrays, digest
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.checkpoints.hf_folder import FolderDescription

# Characters in the name of a tensor.
_LONGEST_NAME = 1000


@dataclass
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: the file or folder.
        state_dict: parameters and buffers by name, on the CPU; empty if the file is streamed.
        meta: the checked record of lpss; empty for checkpoints of other origin.
        kind: ``lpss``, ``state_dict``, ``safetensors``, ``pack``, …, for messages.
        notes: what was folded, stripped or ignored when the file was read.
        init: the tensors that training began from, if an artifact keeps them.
        about: what an exported file says about itself, such as the hash of its source.
        description: what the folder says about its network, if a folder was named.
        file_bytes: size of the file.
        sha256: hash of the file in hex; empty for a streamed file.
        stream: the entries of a streamed file, each read when it is accessed.
    """

    path: Path
    state_dict: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = "state_dict"
    notes: list[str] = field(default_factory=list)
    init: dict[str, Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    description: FolderDescription | None = None
    file_bytes: int = 0
    sha256: str = ""
    stream: TensorReader | None = None

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Return shape and kind of numbers of all entries by name, streamed or not."""
        return self.state_dict if self.stream is None else self.stream.specs

    def array(self, name: str) -> arrays.Array:
        """Return the values of one entry, streamed or not."""
        return arrays.to_numpy(self.state_dict[name]) if self.stream is None else self.stream[name]


def read(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint of any accepted kind; the content tells which.

    Args:
        path: an lpss artifact, a ``torch.save`` file, a safetensors file or a packed ``.lpss``; or
            a folder of the Hugging Face Hub.
        trust_pickle: unpickle arbitrary objects; only for files of trusted origin.

    Raises:
        InputError: the file does not exist, is not a checkpoint, is damaged, asks for more memory
            than it holds, or needs code to be loaded.
    """
    if os.path.isdir(path):  # Path.is_dir fails on names that are too long
        return _from_folder(path)
    data = read_bytes(path)
    read_file.refuse_other_formats(path, data)
    if data.startswith(PACK_MAGIC):
        checkpoint = _from_pack(path, data)
    elif read_file.is_safetensors(data):
        checkpoint = _from_safetensors(path, data)
    else:
        checkpoint = _interpret(path, torch_file.load(path, data, trust_pickle=trust_pickle))
    checkpoint.file_bytes, checkpoint.sha256 = len(data), hashlib.sha256(data).hexdigest()
    _check_tensors(checkpoint)
    if checkpoint.meta:
        # What lpss wrote has the names of its own network, wrapped or not, so nothing is folded.
        parts = {"state_dict": checkpoint.state_dict, "init": checkpoint.init}
        checkpoint.meta, checkpoint.notes = metadata.verify(
            path, checkpoint.meta, parts, checkpoint.specs
        )
    else:
        checkpoint.state_dict, notes = fold_state_dict(checkpoint.state_dict)
        checkpoint.notes += notes
    return checkpoint


def browse(path: Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint; each tensor of a safetensors file is read only when it is accessed.

    Such a file may be larger than memory. Other kinds, and files that store parts of a weight
    separately, are read as by :func:`read`.

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
        return read(path, trust_pickle=trust_pickle)  # a weight is combined from several entries
    checkpoint.stream = streamed.renamed({name: fold.sources[0] for name, fold in folds.items()})
    return checkpoint


def _from_folder(path: Path) -> Checkpoint:
    from lpss_cli.checkpoints.hf_folder import describe

    description = describe(path)
    family = family_of(description.fit.arch)
    kind = f"folder of {family.library}"
    state = family.read_folder(path)
    if state is None:
        checkpoint = read(description.weights)
        return replace(checkpoint, path=path, description=description, kind=kind)
    data = description.weights.read_bytes()
    checkpoint = Checkpoint(path, state, kind=kind, description=description)
    checkpoint.file_bytes, checkpoint.sha256 = len(data), hashlib.sha256(data).hexdigest()
    _check_tensors(checkpoint)
    return checkpoint


def _interpret(path: Path, content: Any) -> Checkpoint:
    """Find the state_dict in whatever ``torch.load`` returned."""
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
    """Split the metadata of a safetensors file into lpss's record, unchecked, and other texts.

    Raises:
        InputError: there is a record of lpss, and it cannot be read.
    """
    try:
        meta = json.loads(texts.get("lpss", "{}"))
    except (ValueError, RecursionError):
        meta = None
    has_digest = any(digest.MANIFEST_KEY in text for text in texts.values())
    if has_digest and (not isinstance(meta, dict) or "lpss" not in texts):
        raise InputError(f"{path} is damaged: its record cannot be read", metadata.REMEDY)
    record = meta if isinstance(meta, dict) else {}
    return record, {key: text for key, text in texts.items() if key != "lpss"}


def _from_pack(path: Path, data: bytes) -> Checkpoint:
    try:
        unpacked = unpack(data)
    except MalformedError as error:
        raise InputError(f"{path} is a damaged pack: {error}", "make it again") from None
    return Checkpoint(path, unpacked.state_dict, unpacked.meta, "pack", about=unpacked.about)


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse tensors that nothing can be computed with: quantized, sparse or without values."""
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
        InputError: there are none, or a name is not a text.
    """
    from torch import Tensor

    entries = content if isinstance(content, Mapping) else {}
    tensors = {name: t for name, t in entries.items() if isinstance(t, Tensor)}
    _check_names(tensors, path)
    return tensors


def _check_names(entries: Mapping[Any, object], path: Path) -> None:
    """Check that a file has tensors, and that their names are texts.

    Raises:
        InputError: it has none, or a name is something else.
    """
    if not entries or not all(map(_is_name, entries)):
        raise InputError(f"{path} holds no state_dict", "save model.state_dict() with torch.save")


def _is_name(name: object) -> bool:
    """Return whether a name is a text that can be written into any file."""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)
