"""Tables of an export: files and their proofs, what dead units cost, accuracies and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lpss_cli.cli.console import metric, name_column, plain, size
from lpss_cli.cli.views.files import size_table

if TYPE_CHECKING:
    from lpss_cli.export.result import ExportedFile
    from lpss_cli.jobs.export import Export
    from lpss_cli.reporting.flops import Savings
    from lpss_cli.reporting.latency import Latency


NO_SKIPPING = (
    "median ± half the interquartile range; onnxruntime does not skip zeros: only removed units "
    "make it faster"
)


def export_tables(result: Export) -> list[Table]:
    """Lay out an export: the files, what dead units cost, accuracies and times, sizes."""
    written = result.files
    tables = [export_table(written), *savings_table(written), *networks_table(written)]
    return [*tables, size_table(result.sizes)]


def savings_table(written: Sequence[ExportedFile]) -> list[Table]:
    """Show each layer before and after dead units are removed; nothing if there are none."""
    return [_savings(x.savings) for x in written if x.savings is not None and x.savings.changed]


def _savings(savings: Savings) -> Table:
    old, new = savings.parameters
    before, after = savings.flops
    table = Table(
        title="units without input or use removed, outputs unchanged",
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    table.add_column("layer", "network", overflow="fold", min_width=8)
    table.add_column("shape", no_wrap=True)
    table.add_column("live shape", no_wrap=True)
    table.add_column("parameters", f"{old:,} → {new:,}", justify="right")
    table.add_column("FLOPs", f"{before:,} → {after:,}", justify="right")
    names = name_column([layer.name for layer in savings.before])
    for name, a, b in zip(names, savings.before, savings.after, strict=True):
        table.add_row(
            name,
            "×".join(map(str, a.shape)),
            "×".join(map(str, b.shape)),
            f"{a.parameters:,} → {b.parameters:,}",
            f"{2 * a.multiply_adds:,} → {2 * b.multiply_adds:,}",
        )
    return table


def networks_table(written: Sequence[ExportedFile]) -> list[Table]:
    """Compare the ONNX files: their metrics, and how long a batch takes."""
    files = {item.path: item.metrics or {} for item in written if item.kind == "onnx"}
    if not files:
        return []
    return [times_table([time for item in written for time in item.latency], files)]


def times_table(
    rows: Sequence[Latency], files: Mapping[str, Mapping[str, float]] | None = None
) -> Table:
    """Compare networks in onnxruntime.

    Args:
        rows: How long a batch takes.
        files: Metrics by network, where they were measured; some may have no times.
    """
    files = files or {}
    title = "in onnxruntime"
    if rows:
        threads = f"{rows[0].threads} thread{'s' if rows[0].threads > 1 else ''}"
        title = f"{rows[0].runtime}, CPU, {threads}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("network", overflow="fold", min_width=14)
    measured = next((name for metrics in files.values() for name in metrics), "")
    if measured:
        table.add_column(measured.replace("_", " "), justify="right", no_wrap=True)
    batches = sorted({row.batch for row in rows})
    for batch in batches:
        table.add_column(f"batch {batch}, ms", justify="right", no_wrap=True)
    for name in dict.fromkeys((*(row.network for row in rows), *files)):
        metrics = files.get(name, {})
        score = metric(measured, metrics[measured]) if measured in metrics else ""
        cells = {
            row.batch: f"{row.median:.3g} ± {(row.high - row.low) / 2:.1g}"
            for row in rows
            if row.network == name
        }
        times = (cells.get(batch, "-") for batch in batches)
        table.add_row(plain(Path(name).name), *([score] if measured else []), *times)
    return table


def onnx_notes(written: Sequence[ExportedFile]) -> list[str]:
    """Return what the tables do not say."""
    notes = []
    for item in written:
        savings = item.savings
        if savings is not None and not savings.changed:
            notes.append("no unit is without input or use: the ONNX file has all of them")
        if savings is not None and savings.reason:
            notes.append(savings.reason)
    if any(item.latency for item in written):
        notes.append(NO_SKIPPING)
    return notes


def export_table(written: Sequence[ExportedFile]) -> Table:
    """List written files with their sizes and proofs."""
    table = Table(show_header=True)
    table.add_column("file", overflow="fold")
    table.add_column("on disk", justify="right", no_wrap=True)
    table.add_column("read back and compared")
    for item in written:
        proof = item.checked
        if item.largest_difference:
            proof += f"; outputs within {item.largest_difference:.1e} of the largest"
        for name, (before, after) in (item.measured or {}).items():
            proof += f"; {name.replace('_', ' ')} {metric(name, before)} → {metric(name, after)}"
        table.add_row(plain(item.path), size(item.bytes), proof)
    return table
