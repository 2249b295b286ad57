"""How large and how fast a checkpoint's network is as files; none of them is left behind."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from lpss_cli.errors import InputError
from lpss_cli.exports.exporting import FORMATS, Exported
from lpss_cli.exports.exportjob import Options, export_file, sizes_of
from lpss_cli.reporting import Report
from lpss_cli.runs.job import JobWatcher
from lpss_cli.runs.request import Request


def with_files(report: Report, request: Request, watcher: JobWatcher | None = None) -> Report:
    """Add the sizes of all files that ``lpss export`` writes, and their times in onnxruntime.

    Args:
        report: of a checkpoint.
        request: how to find its network and its data, where the file does not say.
        watcher: told what was assumed, and what could not be measured.

    Raises:
        InputError: a network or data that were typed do not exist or fit.
        RunError: a written file is not the network.
    """
    path, watcher = Path(report.path), watcher or JobWatcher()
    values = report.bound_values
    # A packed file is its own measure.
    formats = tuple(name for name in FORMATS if (report.kind, name) != ("pack", "pack"))
    try:
        with tempfile.TemporaryDirectory(prefix="lpss-") as folder:
            written = _exported(path, request, Options(formats, values), Path(folder), watcher)
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
    path: Path, request: Request, options: Options, folder: Path, watcher: JobWatcher
) -> list[Exported]:
    """Write every format that can be, each read back and compared."""
    try:
        return export_file(path, request, options, folder, watcher)
    except InputError as error:
        if request.arch or request.data:
            raise
        watcher.on_note(f"no ONNX file, operations or times: {error.what}; {error.do}")
    rest = tuple(name for name in options.formats if name != "onnx")
    return export_file(path, request, replace(options, formats=rest), folder)
