"""``lpss report``: checkpoints in numbers, and the HTML page of them.

A safetensors file is measured a tensor at a time, without PyTorch; other files need it.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lpss_cli.data.spec import DataSpec
from lpss_cli.errors import InputError, one_line
from lpss_cli.export.options import FORMATS, ExportOptions
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import NetworkOptions, ReportOptions, Request
from lpss_cli.utils.files import check_writable
from lpss_cli.utils.options import options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.export.result import ExportedFile
    from lpss_cli.reporting.flops import Savings
    from lpss_cli.reporting.report import Report

#: Larger networks are compacted only on request, because it takes seconds. Parameters.
QUICK = 2_000_000
# Largest input that the record of a file may claim, in numbers: 512 pixels a side.
_LARGEST_INPUT = 1 << 20


def report_files(
    paths: Sequence[Path],
    request: Request,
    wanted: ReportOptions,
    callback: JobCallback | None = None,
) -> list[Report]:
    """Measure checkpoints, layer by layer, and write the HTML page if one is wanted.

    Args:
        paths: The checkpoints; none: the newest artifact in this folder.
        request: How to rebuild the network and find its data, where a file does not say.
        wanted: What to measure beside the layers, and the page to write.
        callback: Told what was assumed; None: nobody wants to know.

    Raises:
        InputError: A file does not exist or fit, or options exclude or need each other.
        RunError: A file that was written to be measured is not the network.
    """
    _check(request, wanted)
    if wanted.html is not None:
        check_writable(wanted.html, force=request.force, option="--html")
    paths = paths or [_newest(callback)]
    if wanted.html is not None and _is_among(wanted.html, paths):
        what = f"--html names {wanted.html}, which is one of the files to read"
        raise InputError(what, "give the page another name")
    checkpoints, reports = _measure(paths, request, wanted.sizes, callback)
    if wanted.html is not None:
        from lpss_cli.reporting import html

        states = [checkpoint.stream or checkpoint.state_dict for checkpoint in checkpoints]
        html.write(wanted.html, list(zip(reports, states, strict=True)))
    return reports


def _check(request: Request, wanted: ReportOptions) -> None:
    """Refuse options that exclude or need each other."""
    if wanted.csv and wanted.sizes:
        raise InputError("--csv has the layers only, and no --sizes", "use --json")
    if wanted.sizes:
        return
    # The environment may name the folder of the data, and a network is of use without data.
    network, data = options(NetworkOptions), options(DataSpec)
    given = [network[name] for name in ("data", "holdout") if getattr(request, name) is not None]
    given += [data[name] for name in request.data_overrides if name != "data_dir"]
    for item in given:
        raise InputError(f"{item.flag} says how to measure with data", "add --sizes")


def _newest(callback: JobCallback | None) -> Path:
    from lpss_cli.jobs.resolve import input_file

    return input_file(None, (callback or JobCallback()).on_note)


def _is_among(path: Path, paths: Sequence[Path]) -> bool:
    """Whether a file is one of several, by whatever name."""
    exist = os.path.exists  # Path.exists fails on names that are too long
    return exist(path) and any(exist(other) and os.path.samefile(path, other) for other in paths)


def _measure(
    paths: Sequence[Path], request: Request, sizes: bool, callback: JobCallback | None
) -> tuple[list[Checkpoint], list[Report]]:
    """Read and measure every file; what its files would cost only where that is wanted."""
    from lpss_cli.checkpoints.safetensors_file import can_stream

    if sizes or not all(map(can_stream, paths)):
        _load_torch()
    from lpss_cli.checkpoints.identify import introduce
    from lpss_cli.checkpoints.loading import browse
    from lpss_cli.reporting.report import report

    checkpoints = [browse(path, trust_pickle=request.trust_pickle) for path in paths]
    # Where files are measured too, their export says the same.
    if callback is not None and not sizes:
        for checkpoint in checkpoints:
            for text in (*checkpoint.notes, *introduce(checkpoint)):
                callback.on_note(text)
    reports = [report(checkpoint) for checkpoint in checkpoints]
    if sizes:
        return checkpoints, [with_files(item, request, callback) for item in reports]
    pairs = zip(reports, checkpoints, strict=True)
    return checkpoints, [with_savings(item, of, request.arch) for item, of in pairs]


def _load_torch() -> None:
    """Import PyTorch, and tell Python that what comes with it is not garbage.

    It stays to the end, where a look through all of it would take a fifth of a short command's
    time. Not for jobs that load more extensions later: some complain of what is left then.
    """
    if "torch" not in sys.modules:
        import torch  # noqa: F401  # for what follows

        gc.freeze()


def with_files(report: Report, request: Request, callback: JobCallback | None = None) -> Report:
    """Add the sizes of all files that ``lpss export`` writes, and their latency in onnxruntime.

    The files are removed.

    Args:
        report: The report of a checkpoint.
        request: How to find its network and its data, where the file does not say.
        callback: Told what was assumed, and what could not be measured.

    Raises:
        InputError: A network or data that were asked for do not exist or fit.
        RunError: A written file is not the network.
    """
    from lpss_cli.jobs.export import sizes_of

    path, callback = Path(report.path), callback or JobCallback()
    # A packed file is its own measure.
    formats = tuple(name for name in FORMATS if (report.kind, name) != ("pack", "pack"))
    wanted = ExportOptions(formats, report.bound_values)
    try:
        with tempfile.TemporaryDirectory(prefix="lpss-") as folder:
            written = _exported(path, request, wanted, Path(folder), callback)
            sizes = sizes_of(path, request, written)
    except OSError as error:
        raise InputError(
            f"there is no room for the files to be measured: {error.strerror}",
            "set TMPDIR to a folder with room",
        ) from error
    latency = tuple(
        replace(time, network=Path(time.network).name) for file in written for time in file.latency
    )
    live = next((file.savings for file in written if file.savings is not None), report.live)
    return replace(report, sizes=tuple(sizes), latency=latency, live=live)


def _exported(
    path: Path, request: Request, wanted: ExportOptions, folder: Path, callback: JobCallback
) -> list[ExportedFile]:
    """Write every format that is possible, each file read back and compared."""
    from lpss_cli.jobs.export import export_file

    try:
        return export_file(path, request, wanted, folder, callback)
    except InputError as error:
        if request.arch or request.data:
            raise
        callback.on_note(f"no ONNX file, operations or times: {error.what}; {error.do}")
    rest = tuple(name for name in wanted.formats if name != "onnx")
    return export_file(path, request, replace(wanted, formats=rest), folder)


def with_savings(report: Report, checkpoint: Checkpoint, arch: str | None = None) -> Report:
    """Add live shapes, parameters and operations where the checkpoint knows its network.

    Args:
        report: The report of the checkpoint.
        checkpoint: An lpss checkpoint. Others come back as they are, and so do those of more
            parameters than ``QUICK``, and those whose tensors are still in the file.
        arch: The network that was asked for; code that a file names is not imported without it.
            With it, a network that cannot be tried is an error.

    Raises:
        InputError: The network that was asked for does not exist or fit, or cannot be tried.
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
        return report  # an export says why


def savings(checkpoint: Checkpoint, arch: str | None = None) -> Savings:
    """Return what removing dead units saves, from the network and input that an artifact names.

    Args:
        checkpoint: Its tensors are read.
        arch: The network that was asked for.

    Raises:
        InputError: The network or the shape of its inputs is not known, or they do not fit.
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
    from lpss_cli.checkpoints.identify import identify
    from lpss_cli.checkpoints.load_weights import check_fits, load_into

    info = identify(checkpoint, typed) if checkpoint.meta else None
    shape, outputs = (info.input_shape, info.outputs) if info else (None, None)
    if not info or not shape or not outputs or math.prod(shape) > _LARGEST_INPUT:
        raise InputError(
            f"{checkpoint.path} does not say what inputs its network takes",
            "`lpss report --sizes --data` tries it on its data",
        )
    info = replace(info, arch=models.resolve(info.arch, shape, outputs))
    if typed is None:
        check_fits(checkpoint, info)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(info.arch, shape, outputs)
        example = torch.randn(2, *shape)
    load_into(model, checkpoint, info)
    return model, example
