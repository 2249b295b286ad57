"""A checkpoint in other formats, without any printing: every file read back and compared."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from lpss_cli.checkpoints import artifact, record
from lpss_cli.checkpoints.fitting import refuse_not_finite
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data import Data
from lpss_cli.errors import InputError, nearest
from lpss_cli.exports.cleaning import clean
from lpss_cli.exports.exporting import FORMATS, Exported, export_safetensors
from lpss_cli.exports.onnxjob import OnnxOptions, write_onnx
from lpss_cli.exports.onnxjob import targets as onnx_targets
from lpss_cli.exports.packing import Trial, export_pack
from lpss_cli.exports.sizes import Size, table
from lpss_cli.packed import CHOICES, DEFAULT_VALUES
from lpss_cli.packed import check as check_packable
from lpss_cli.reporting import packed_values, weights_of
from lpss_cli.runs.job import JobWatcher
from lpss_cli.runs.request import Request, device_of
from lpss_cli.runs.resolving import restore
from lpss_cli.utils import digest
from lpss_cli.utils.files import check_space, output

# Formats whose files end in another name.
_SUFFIXES = {"pack": "lpss"}
# What a program that runs the ONNX file needs beside the network.
_ONNX_METADATA = ("arch", "classes", "preprocessing", "sparsity", "method")
_OPTION = "--out-dir"


@dataclass(frozen=True)
class Options:
    """How files are made.

    Attributes:
        formats: some of ``FORMATS``.
        values: type of the packed values, one of ``packed.CHOICES``.
        onnx: how the ONNX file is made, and which ones beside it.
        clean: zero what reaches no output first, in all files.
    """

    formats: tuple[str, ...] = FORMATS
    values: str = DEFAULT_VALUES
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    clean: bool = False

    def check(self) -> None:
        """Find what does not exist.

        Raises:
            InputError: a format, a type of values or an encoding.
        """
        for name in set(self.formats) - set(FORMATS):
            raise InputError(f"unknown format {name!r}", nearest(name, FORMATS))
        if self.values not in CHOICES:
            raise InputError(f"unknown --values {self.values!r}", nearest(self.values, (*CHOICES,)))
        self.onnx.check()


def export_file(
    path: Path,
    request: Request,
    options: Options | None = None,
    directory: Path | None = None,
    watcher: JobWatcher | None = None,
) -> list[Exported]:
    """Write a checkpoint in other formats beside it, each file read back and compared.

    Args:
        path: the checkpoint; ``model.pt`` becomes ``model.safetensors``, ``model.onnx``, ….
        request: how to rebuild the network where the file does not say.
        options: which files, and how they are made.
        directory: where to write instead.
        watcher: told what was folded or renamed on the way in.

    Raises:
        InputError: the file does not exist or fit, or an output exists.
        RunError: a written file is not the model; it has been removed.
    """
    options, watcher = options or Options(), watcher or JobWatcher()
    options.check()
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        watcher.on_note(note)
    directory, formats = directory or path.parent, options.formats
    targets = {name: directory / f"{path.stem}.{_SUFFIXES.get(name, name)}" for name in formats}
    targets = {name: to for name, to in targets.items() if to.resolve() != path.resolve()}
    if not targets:
        raise InputError(f"{path} is all that was asked for", f"pass --format {','.join(FORMATS)}")
    beside = onnx_targets(targets["onnx"], options.onnx)[1:] if "onnx" in targets else []
    with contextlib.ExitStack() as held:
        for to in (*targets.values(), *beside):
            held.enter_context(output(to, force=request.force, option=_OPTION))
            check_space(to, artifact.size(checkpoint.state_dict), _OPTION)
        written = _export(checkpoint, request, targets, options, watcher)
    return sorted(written, key=lambda file: formats.index(file.kind))


def _export(
    checkpoint: Checkpoint,
    request: Request,
    targets: Mapping[str, Path],
    options: Options,
    watcher: JobWatcher,
) -> list[Exported]:
    # Everything that can be refused is, before the first file is written.
    if "pack" in targets:
        refuse_not_finite(checkpoint.state_dict, checkpoint.path)
        check_packable(checkpoint.state_dict)
    needed = {*targets, *(["onnx"] if options.clean else [])}
    restored = _restored(checkpoint, request, needed, watcher)
    if options.clean and restored is not None:
        checkpoint, count = clean(checkpoint, restored[0], restored[2])
        watcher.on_note(f"{count:,} more weights are zero: they reached no output")
    written: list[Exported] = []
    if restored is not None and "onnx" in targets:
        model, _, data = restored
        texts = {key: json.dumps(checkpoint.meta.get(key)) for key in _ONNX_METADATA}
        written += write_onnx(model, data, targets["onnx"], texts, options.onnx)
    if "safetensors" in targets:
        written.append(export_safetensors(_sealed(checkpoint), targets["safetensors"]))
    if "pack" in targets:
        trial = restored and Trial(restored[0], restored[2], device_of(request.device))
        written.append(export_pack(checkpoint, targets["pack"], values=options.values, trial=trial))
    return written


def _restored(
    checkpoint: Checkpoint, request: Request, formats: Collection[str], watcher: JobWatcher
) -> tuple[nn.Module, str, Data] | None:
    """Return the network and its data: for ONNX always, for a pack's proof where they are at hand.

    Raises:
        InputError: a network or data that are needed, or were typed, do not exist or fit.
    """
    if not {"onnx", "pack"} & set(formats):
        return None
    try:
        return restore(checkpoint, request, watcher.on_note)
    except InputError as error:
        if "onnx" in formats or request.arch or request.data:
            raise
        watcher.on_note(f"outputs are not compared: {error.what}")
        return None


def _sealed(checkpoint: Checkpoint) -> Checkpoint:
    """Put the manifest into the record that a file of tensors alone will hold."""
    # The history stays in the artefact, and so do the weights that training began from.
    kept = record.exported(checkpoint.meta)
    parts = {"state_dict": checkpoint.state_dict, "init": None}
    return replace(checkpoint, meta=digest.seal(kept, parts))


def sizes_of(path: Path, request: Request, written: Sequence[Exported]) -> list[Size]:
    """Set the sizes of a checkpoint's written files beside the dense and the masked ones.

    Args:
        path: the checkpoint that was exported.
        request: whether pickles are trusted.
        written: the files.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    files = [(x.kind, x.bytes, x.values) for x in written]
    if checkpoint.kind == "pack":
        files.append(("pack", checkpoint.file_bytes, packed_values(checkpoint)))
    return table(checkpoint.state_dict, list(weights_of(checkpoint)), files)
