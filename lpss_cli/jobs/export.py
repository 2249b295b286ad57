"""Exporting a checkpoint: every file that is written is read back and compared with the network."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lpss_cli.checkpoints import artifact, metadata
from lpss_cli.checkpoints.load_weights import load_into, refuse_not_finite
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.checkpoints.packed import check_packable
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError
from lpss_cli.export.compaction.compact import redundant_weights
from lpss_cli.export.onnx.pipeline import output_paths as onnx_paths
from lpss_cli.export.onnx.pipeline import write_onnx
from lpss_cli.export.options import FORMATS, ExportOptions
from lpss_cli.export.pack import Reference, export_pack
from lpss_cli.export.result import ExportedFile
from lpss_cli.export.safetensors import export_safetensors
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request, device_of
from lpss_cli.jobs.resolve import input_file, restore
from lpss_cli.models import ModelInfo
from lpss_cli.reporting.report import packed_values, weights_of
from lpss_cli.reporting.sizes import Size, table
from lpss_cli.utils import digest
from lpss_cli.utils.files import check_space, reserve_output

# Inputs on which the outputs before and after cleaning are compared.
_COMPARED = 256
# Suffixes of formats that do not have their own name.
_SUFFIXES = {"pack": "lpss"}
# Entries of the record that a program needs to run the ONNX file.
_ONNX_METADATA = ("arch", "classes", "preprocessing", "sparsity", "method")
_OPTION = "--out-dir"


@dataclass(frozen=True)
class Export:
    """The files of one export.

    Attributes:
        source: The checkpoint.
        files: The written files, in the order in which they were asked for.
        sizes: Their sizes, beside those of the dense and the masked network.
    """

    source: Path
    files: list[ExportedFile]
    sizes: list[Size]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "source": str(self.source),
            "files": [file.to_dict() for file in self.files],
            "sizes": [size.to_dict() for size in self.sizes],
        }


def export(
    path: Path | None,
    request: Request,
    options: ExportOptions,
    directory: Path | None = None,
    callback: JobCallback | None = None,
) -> Export:
    """Write a checkpoint in other formats and compare the sizes; see ``export_file``.

    Args:
        path: The checkpoint; None: the newest artifact in this folder.
        request: How to rebuild the network where the file does not say.
        options: Which files to write, and how.
        directory: Folder to write to; None: that of the checkpoint.
        callback: Told what was assumed.

    Raises:
        InputError: The file does not exist or fit, or an output exists.
        RunError: A written file is not the model; it has been removed.
    """
    callback = callback or JobCallback()
    path = input_file(path, callback.on_note)
    files = export_file(path, request, options, directory, callback)
    return Export(path, files, sizes_of(path, request, files))


def export_file(
    path: Path,
    request: Request,
    options: ExportOptions | None = None,
    directory: Path | None = None,
    callback: JobCallback | None = None,
) -> list[ExportedFile]:
    """Write a checkpoint in other formats beside it, each file read back and compared.

    Args:
        path: The checkpoint; ``model.pt`` becomes ``model.safetensors``, ``model.onnx``, ….
        request: How to rebuild the network where the file does not say.
        options: Which files to write, and how.
        directory: Folder to write to; None: that of the checkpoint.
        callback: Told what was folded or renamed when the file was read.

    Raises:
        InputError: The file does not exist or fit, or an output exists.
        RunError: A written file is not the model; it has been removed.
    """
    options, callback = options or ExportOptions(), callback or JobCallback()
    options.check()
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        callback.on_note(note)
    directory, formats = directory or path.parent, options.formats
    targets = {name: directory / f"{path.stem}.{_SUFFIXES.get(name, name)}" for name in formats}
    targets = {name: to for name, to in targets.items() if to.resolve() != path.resolve()}
    if not targets:
        raise InputError(f"{path} is all that was asked for", f"pass --format {','.join(FORMATS)}")
    beside = onnx_paths(targets["onnx"], options.onnx)[1:] if "onnx" in targets else []
    with contextlib.ExitStack() as held:
        for to in (*targets.values(), *beside):
            held.enter_context(reserve_output(to, force=request.force, option=_OPTION))
            check_space(to, artifact.estimated_bytes(checkpoint.state_dict), _OPTION)
        written = _export(checkpoint, request, targets, options, callback)
    return sorted(written, key=lambda file: formats.index(file.kind))


def _export(
    checkpoint: Checkpoint,
    request: Request,
    targets: Mapping[str, Path],
    options: ExportOptions,
    callback: JobCallback,
) -> list[ExportedFile]:
    # Whatever has to be refused is refused before the first file is written.
    if "pack" in targets:
        refuse_not_finite(checkpoint.state_dict, checkpoint.path)
        check_packable(checkpoint.state_dict)
    restored = _restore(checkpoint, request, targets, callback, is_needed=options.clean)
    if options.clean and restored is not None:
        checkpoint, count = clean(checkpoint, *restored)
        callback.on_note(f"{count:,} more weights are zero: they reached no output")
    written: list[ExportedFile] = []
    if restored is not None and "onnx" in targets:
        model, info, data = restored
        texts = {key: json.dumps(checkpoint.meta.get(key)) for key in _ONNX_METADATA}
        written += write_onnx(model, data, targets["onnx"], texts, options.onnx, info.flops)
    if "safetensors" in targets:
        written.append(export_safetensors(_sealed(checkpoint), targets["safetensors"]))
    if "pack" in targets:
        reference = restored and Reference(*restored, device_of(request.device))
        path = targets["pack"]
        written.append(export_pack(checkpoint, path, values=options.values, reference=reference))
    return written


def _restore(
    checkpoint: Checkpoint,
    request: Request,
    formats: Collection[str],
    callback: JobCallback,
    is_needed: bool,
) -> tuple[nn.Module, ModelInfo, Data] | None:
    """Restore the network and its data, if a format needs them.

    ONNX cannot do without. A pack is also compared by its outputs, if network and data are there.

    Raises:
        InputError: A network or data that are needed, or were asked for, do not exist or fit.
    """
    is_needed = is_needed or "onnx" in formats
    if not is_needed and "pack" not in formats:
        return None
    try:
        return restore(checkpoint, request, callback.on_note)
    except InputError as error:
        if is_needed or request.arch or request.data:
            raise
        callback.on_note(f"outputs are not compared: {error.what}")
        return None


def _sealed(checkpoint: Checkpoint) -> Checkpoint:
    """Put the digest into the record, which the exported file holds as a text."""
    # The training history and the initial weights stay in the artifact.
    record = metadata.for_export(checkpoint.meta)
    parts = {"state_dict": checkpoint.state_dict, "init": None}
    return replace(checkpoint, meta=digest.seal_record(record, parts))


def sizes_of(path: Path, request: Request, written: Sequence[ExportedFile]) -> list[Size]:
    """Return the sizes of a checkpoint's files, with those of the dense and the masked network.

    Args:
        path: The checkpoint that was exported.
        request: Whether pickles are trusted.
        written: The files.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    files = [(x.kind, x.bytes, x.values) for x in written]
    if checkpoint.kind == "pack":
        files.append(("pack", checkpoint.file_bytes, packed_values(checkpoint)))
    return table(checkpoint.state_dict, list(weights_of(checkpoint)), files)


def clean(
    checkpoint: Checkpoint, model: nn.Module, info: ModelInfo, data: Data
) -> tuple[Checkpoint, int]:
    """Set weights that reach no output to zero.

    Args:
        checkpoint: The checkpoint.
        model: Its network with its weights, which are changed in place.
        info: What is known about the network.
        data: Its data; outputs are compared on the test split.

    Returns:
        The checkpoint with the changed tensors, and the number of new zeros among its prunable
        weights.

    Raises:
        RunError: The network's names of its tensors are not those of the file.
    """
    example = next(iter(data.test.batches(_COMPARED)))[0]
    changed = redundant_weights(model, example)
    if changed.keys() - checkpoint.state_dict.keys():
        raise RunError(
            f"the network of {checkpoint.path} has other names for its weights than the file",
            "leave out --clean",
        )
    state = {**checkpoint.state_dict, **{name: t.clone() for name, t in changed.items()}}
    cleaned = replace(checkpoint, state_dict=state)
    load_into(model, cleaned, info)
    return cleaned, _zeros(cleaned) - _zeros(checkpoint)


def _zeros(checkpoint: Checkpoint) -> int:
    return sum(int((weight.tensor == 0).sum()) for weight in weights_of(checkpoint).values())
