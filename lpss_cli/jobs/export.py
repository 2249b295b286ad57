"""A checkpoint in other formats, without any printing: every file read back and compared."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lpss_cli.checkpoints import artifact, metadata
from lpss_cli.checkpoints.load_weights import load_into, refuse_not_finite
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.checkpoints.packed import CHOICES, DEFAULT_VALUES, check_packable
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError, nearest, one_line
from lpss_cli.export.compaction.compact import redundant_weights
from lpss_cli.export.onnx.pipeline import OnnxOptions, write_onnx
from lpss_cli.export.onnx.pipeline import output_paths as onnx_paths
from lpss_cli.export.pack import Reference, export_pack
from lpss_cli.export.result import FORMATS, ExportedFile
from lpss_cli.export.safetensors import export_safetensors
from lpss_cli.jobs.config import Request, device_of
from lpss_cli.jobs.resolve import restore
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.report.report import Report, packed_values, weights_of
from lpss_cli.report.sizes import Size, table
from lpss_cli.utils import digest
from lpss_cli.utils.files import check_space, output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.report.flops import Savings
    from lpss_cli.report.report import Report

# MERGED: A checkpoint without its dead ends: the same network, with more zeros.
# Inputs on which the outputs before and after are compared.
_COMPARED = 256


def clean(checkpoint: Checkpoint, model: nn.Module, data: Data) -> tuple[Checkpoint, int]:
    """Zero what reaches no output, and say how many weights became zero by it.

    Args:
        checkpoint: of the network.
        model: the network with its weights; they are changed in place.
        data: its data; outputs are compared on the test part.

    Returns:
        The checkpoint with its tensors as they are now, and the number of new zeros among its
        prunable weights.

    Raises:
        RunError: the network names its tensors otherwise than the file.
    """
    example = next(iter(data.test.batches(_COMPARED)))[0]
    found = redundant_weights(model, example)
    if found.keys() - checkpoint.state_dict.keys():
        raise RunError(
            f"the network of {checkpoint.path} names its weights otherwise than the file",
            "leave out --clean",
        )
    state = {**checkpoint.state_dict, **{name: t.clone() for name, t in found.items()}}
    cleaned = replace(checkpoint, state_dict=state)
    load_into(model, cleaned, str(checkpoint.meta.get("arch")))
    return cleaned, _zeros(cleaned) - _zeros(checkpoint)


def _zeros(checkpoint: Checkpoint) -> int:
    return sum(int((weight.tensor == 0).sum()) for weight in weights_of(checkpoint).values())


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
    callback: JobCallback | None = None,
) -> list[ExportedFile]:
    """Write a checkpoint in other formats beside it, each file read back and compared.

    Args:
        path: the checkpoint; ``model.pt`` becomes ``model.safetensors``, ``model.onnx``, ….
        request: how to rebuild the network where the file does not say.
        options: which files, and how they are made.
        directory: where to write instead.
        callback: told what was folded or renamed on the way in.

    Raises:
        InputError: the file does not exist or fit, or an output exists.
        RunError: a written file is not the model; it has been removed.
    """
    options, callback = options or Options(), callback or JobCallback()
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
            held.enter_context(output(to, force=request.force, option=_OPTION))
            check_space(to, artifact.estimated_bytes(checkpoint.state_dict), _OPTION)
        written = _export(checkpoint, request, targets, options, callback)
    return sorted(written, key=lambda file: formats.index(file.kind))


def _export(
    checkpoint: Checkpoint,
    request: Request,
    targets: Mapping[str, Path],
    options: Options,
    callback: JobCallback,
) -> list[ExportedFile]:
    # Everything that can be refused is, before the first file is written.
    if "pack" in targets:
        refuse_not_finite(checkpoint.state_dict, checkpoint.path)
        check_packable(checkpoint.state_dict)
    needed = {*targets, *(["onnx"] if options.clean else [])}
    restored = _restored(checkpoint, request, needed, callback)
    if options.clean and restored is not None:
        checkpoint, count = clean(checkpoint, restored[0], restored[2])
        callback.on_note(f"{count:,} more weights are zero: they reached no output")
    written: list[ExportedFile] = []
    if restored is not None and "onnx" in targets:
        model, _, data = restored
        texts = {key: json.dumps(checkpoint.meta.get(key)) for key in _ONNX_METADATA}
        written += write_onnx(model, data, targets["onnx"], texts, options.onnx)
    if "safetensors" in targets:
        written.append(export_safetensors(_sealed(checkpoint), targets["safetensors"]))
    if "pack" in targets:
        reference = restored and Reference(restored[0], restored[2], device_of(request.device))
        path = targets["pack"]
        written.append(export_pack(checkpoint, path, values=options.values, reference=reference))
    return written


def _restored(
    checkpoint: Checkpoint, request: Request, formats: Collection[str], callback: JobCallback
) -> tuple[nn.Module, str, Data] | None:
    """Return the network and its data: for ONNX always, for a pack's proof where they are at hand.

    Raises:
        InputError: a network or data that are needed, or were typed, do not exist or fit.
    """
    if not {"onnx", "pack"} & set(formats):
        return None
    try:
        return restore(checkpoint, request, callback.on_note)
    except InputError as error:
        if "onnx" in formats or request.arch or request.data:
            raise
        callback.on_note(f"outputs are not compared: {error.what}")
        return None


def _sealed(checkpoint: Checkpoint) -> Checkpoint:
    """Put the manifest into the record that a file of tensors alone will hold."""
    # The history stays in the artefact, and so do the weights that training began from.
    kept = metadata.for_export(checkpoint.meta)
    parts = {"state_dict": checkpoint.state_dict, "init": None}
    return replace(checkpoint, meta=digest.seal(kept, parts))


def sizes_of(path: Path, request: Request, written: Sequence[ExportedFile]) -> list[Size]:
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


# MERGED: How large and how fast a checkpoint's network is as files; none of them is left behind.
def with_files(report: Report, request: Request, callback: JobCallback | None = None) -> Report:
    """Add the sizes of all files that ``lpss export`` writes, and their times in onnxruntime.

    Args:
        report: of a checkpoint.
        request: how to find its network and its data, where the file does not say.
        callback: told what was assumed, and what could not be measured.

    Raises:
        InputError: a network or data that were typed do not exist or fit.
        RunError: a written file is not the network.
    """
    path, callback = Path(report.path), callback or JobCallback()
    values = report.bound_values
    # A packed file is its own measure.
    formats = tuple(name for name in FORMATS if (report.kind, name) != ("pack", "pack"))
    try:
        with tempfile.TemporaryDirectory(prefix="lpss-") as folder:
            written = _exported(path, request, Options(formats, values), Path(folder), callback)
            sizes = sizes_of(path, request, written)
    except OSError as error:
        raise InputError(
            f"no room for the files to be measured: {error.strerror}",
            "set TMPDIR to a folder with room",
        ) from error
    times = tuple(
        replace(time, network=Path(time.network).name) for item in written for time in item.latency
    )
    live = next((item.savings for item in written if item.savings is not None), report.live)
    return replace(report, sizes=tuple(sizes), latency=times, live=live)


def _exported(
    path: Path, request: Request, options: Options, folder: Path, callback: JobCallback
) -> list[ExportedFile]:
    """Write every format that can be, each read back and compared."""
    try:
        return export_file(path, request, options, folder, callback)
    except InputError as error:
        if request.arch or request.data:
            raise
        callback.on_note(f"no ONNX file, operations or times: {error.what}; {error.do}")
    rest = tuple(name for name in options.formats if name != "onnx")
    return export_file(path, request, replace(options, formats=rest), folder)


# MERGED: What a checkpoint's network costs without its dead units, from what the checkpoint says
# MERGED: alone.
#: Larger networks are compacted when it is asked for: it takes seconds. Parameters.
QUICK = 2_000_000
# Largest input that a file's record is believed, in numbers: 512 pixels a side.
_LARGEST_INPUT = 1 << 20


def with_savings(report: Report, checkpoint: Checkpoint, arch: str | None = None) -> Report:
    """Add live shapes, parameters and operations where the checkpoint knows its network.

    Args:
        report: of the checkpoint.
        checkpoint: one of lpss; others come back as they are, and so do larger ones than ``QUICK``
            parameters, and those whose tensors are still in the file.
        arch: the network that was typed; code that a file names is not imported without. With it
            the network is tried, or the reason why not is an error.

    Raises:
        InputError: the network that was typed does not exist or fit, or cannot be tried.
    """
    if arch is None and (checkpoint.stream is not None or report.parameters > QUICK):
        return report
    if checkpoint.stream is not None:
        raise InputError(
            f"{checkpoint.path} is read a tensor at a time, and --arch needs all of them",
            "add --sizes",
        )
    try:
        return replace(report, live=savings(checkpoint, arch))
    except InputError:
        if arch is not None:
            raise
        return report  # said where it is asked for


def savings(checkpoint: Checkpoint, arch: str | None = None) -> Savings:
    """Return what removing dead units saves, from the network and input that an artefact names.

    Args:
        checkpoint: its tensors are read.
        arch: the network that was typed.

    Raises:
        InputError: the network or the shape of its inputs is not known, or they do not fit.
    """
    from lpss_cli.export.compaction.compact import compact

    model, example = _network(checkpoint, arch)
    try:
        return compact(model, example).savings
    except Exception as error:  # whatever a network raises on inputs of another kind
        raise InputError(
            f"{checkpoint.path}: the network cannot be tried: {one_line(error)[:200]}",
            "`lpss export` tries it on its data",
        ) from error


def _network(checkpoint: Checkpoint, typed: str | None) -> tuple[nn.Module, Tensor]:
    """Return the network with its weights, and two random inputs of its shape."""
    import torch

    from lpss_cli import models
    from lpss_cli.checkpoints import artifact
    from lpss_cli.checkpoints.load_weights import check_fits, load_into

    arch = artifact.arch_of(checkpoint, typed)
    shape, outputs = checkpoint.meta.get("input_shape"), checkpoint.meta.get("outputs")
    if not shape or not outputs or math.prod(shape) > _LARGEST_INPUT:
        raise InputError(
            f"{checkpoint.path} does not say what inputs its network takes",
            "`lpss report --sizes --data` tries it on its data",
        )
    shape = tuple(shape)
    arch = models.resolve(arch, shape, outputs)
    if typed is None:
        check_fits(arch, shape, outputs, checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(arch, shape, outputs)
        example = torch.randn(2, *shape)
    load_into(model, checkpoint, arch)
    return model, example
