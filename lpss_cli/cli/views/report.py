"""A report and a plan, layer by layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.table import Table

from lpss_cli.cli.console import metric, name_column, number, plain, share, size
from lpss_cli.cli.views.export import NO_SKIPPING, times_table
from lpss_cli.cli.views.files import size_table

if TYPE_CHECKING:
    from lpss_cli.jobs.plan import Plan
    from lpss_cli.report.flops import Savings
    from lpss_cli.report.layers import Layer
    from lpss_cli.report.report import Report

# Columns that a narrow terminal goes without, the least missed first.
_DISPENSABLE = ("shape", "live shape", "weights", "zeros", "predicted", "dead", "p")


def warnings(report: Report) -> list[str]:
    """Return what a reader of the report should know first."""
    found = [] if report.layers else [f"{report.path} holds no prunable weight"]
    many = [f"{name} ({count:,})" for name, count in report.not_finite.items()]
    if many:
        more = f" and {len(many) - 5} more" if len(many) > 5 else ""
        text = f"{report.path} holds values that are not finite: {', '.join(many[:5])}{more}"
        found.append(text)
    return found


def layer_table(report: Report, width: int) -> Table:
    """Lay out a report layer by layer, with totals; names are shortened only as a last resort."""
    columns: dict[str, tuple[str, Callable[[Layer], str]]] = {
        "shape": ("", lambda layer: "×".join(map(str, layer.shape))),
        "live shape": ("", lambda layer: "×".join(map(str, report.live_shape(layer) or "-"))),
        "weights": (f"{report.weights:,}", lambda layer: f"{layer.weights:,}"),
        "zeros": (f"{report.zeros:,}", lambda layer: f"{layer.zeros:,}"),
        "sparsity": (share(report.sparsity), lambda layer: share(layer.sparsity)),
        "Hoyer": (number(report.hoyer), lambda layer: number(layer.hoyer)),
        "dead": (f"{report.dead:,}", lambda layer: f"{layer.dead:,}"),
        "p": ("", lambda layer: "-" if layer.p is None else f"{layer.p:.4g}"),
        "predicted": (_error(report), _prediction),
    }
    if report.live is None or not report.live.changed:
        del columns["live shape"]
    for name in ("p", "predicted"):
        if all(getattr(layer, name) is None for layer in report.layers):
            del columns[name]
    widths = {
        name: 3 + max(len(name), len(footer), *(len(cell(layer)) for layer in report.layers), 0)
        for name, (footer, cell) in columns.items()
    }
    cells = name_column([layer.name for layer in report.layers])
    room = width - 4 - max(len("all prunable"), *(cell_len(shown.name) for shown in cells), 0)
    for name in _DISPENSABLE:
        if sum(widths.values()) > room and name in columns:
            del columns[name], widths[name]
    table = Table(
        title=plain(report.path), title_justify="left", title_style="bold", show_footer=True
    )
    table.add_column("layer", "all prunable", overflow="fold", min_width=8)
    for name, (footer, _) in columns.items():
        justify: Literal["left", "right"] = "left" if name.endswith("shape") else "right"
        table.add_column(name, footer, justify=justify, no_wrap=True)
    for shown, layer in zip(cells, report.layers, strict=True):
        table.add_row(shown, *(cell(layer) for _, cell in columns.values()))
    return table


def _prediction(layer: Layer) -> str:
    """Predicted Hoyer, and how far the measured one lies from it."""
    if layer.predicted is None or layer.hoyer is None:
        return "-"
    return f"{layer.predicted:.3f} {layer.hoyer - layer.predicted:+.3f}"


def _error(report: Report) -> str:
    errors = [
        abs(layer.hoyer - layer.predicted)
        for layer in report.layers
        if layer.hoyer is not None and layer.predicted is not None
    ]
    return f"mean |err| {sum(errors) / len(errors):.3f}" if errors else ""


def plan_table(plan: Plan, width: int) -> Table:
    """Lay out a plan layer by layer; what only researchers ask for where the width allows it."""
    wide = width >= max(len(layer.name) for layer in plan.layers) + 80
    table = Table(
        title=f"{plain(plan.source)} at {share(plan.sparsity)} zeros, ranking {plan.ranking}",
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    table.add_column("layer", "all prunable", overflow="fold", min_width=8)
    for name, footer in {
        **({"weights": f"{plan.weights:,}"} if wide else {}),
        "fan-in": "",
        "p": "",
        "Hoyer": "",
        **({"n → ∞": ""} if wide else {}),
        "kept": f"{plan.kept:,}",
        "sparsity": share(1 - plan.kept / plan.weights),
        "Hoyer then": "",
    }.items():
        table.add_column(name, footer, justify="right", no_wrap=True)
    for layer, shown in zip(plan.layers, name_column([x.name for x in plan.layers]), strict=True):
        table.add_row(
            shown,
            *([f"{layer.weights:,}"] if wide else []),
            "-" if layer.fan_in is None else f"{layer.fan_in:,}",
            "-" if layer.p is None else f"{layer.p:.4g}",
            number(layer.hoyer),
            *([number(layer.hoyer_limit)] if wide else []),
            f"{layer.kept:,}",
            share(1 - layer.kept / layer.weights),
            number(layer.hoyer_at_target),
        )
    return table


def origin_table(report: Report) -> Table:
    """Say how the checkpoint was made, as far as it says so itself."""
    meta = report.meta
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("file", f"{size(report.file_bytes)}, {report.parameters:,} parameters")
    bytes_ = size(round(report.bound_bytes))
    bound = f"{bytes_}: mask entropy plus {report.bound_values} values"
    if report.kind == "pack":
        bound += f"; the file is {report.file_bytes / max(1, report.bound_bytes):.3f} of it"
    rows.add_row("bound", bound)
    if report.live is not None:
        rows.add_row("live", live_text(report.live))
    if not meta:
        return rows
    settings: Mapping[str, Any] = meta.get("settings") or {}
    lines = {
        "network": str(meta.get("arch", "")),
        "data": f"{meta['data_name']}, seed {settings.get('seed')}" if "data_name" in meta else "",
        "method": str(meta.get("method", "")),
    }
    if settings.get("layers"):
        lines["layers"] = ", ".join(map(str, settings["layers"]))
    if settings.get("distill"):
        lines["distilled"] = (
            f"{settings['distill']} of the loss, temperature {settings.get('temperature')}"
        )
    if meta.get("search"):
        lines["search"] = _walked(meta["search"])
    metrics: Mapping[str, Any] = meta.get("metrics") or {}
    for part in ("before", "before_cut", "after"):
        values = metrics.get(part) or {}
        text = ", ".join(f"{k.replace('_', ' ')} {metric(k, v)}" for k, v in values.items())
        if text:
            lines[part.replace("_", " ")] = f"{text} ({metrics.get('on', 'test')})"
    versions: Mapping[str, str] = meta.get("versions") or {}
    lines["made with"] = ", ".join(f"{k} {v}" for k, v in versions.items())
    if meta.get("command"):
        lines["command"] = str(meta["command"])
    for name, text in lines.items():
        if text:
            rows.add_row(name, plain(text))
    return rows


def live_text(live: Savings) -> str:
    """Say what is left without dead units: parameters, and operations of an example."""
    old, new = live.parameters
    before, after = live.flops
    if not live.changed:
        text = f"no unit is without input or use; {before:,} FLOPs an example"
    else:
        text = f"{old:,} → {new:,} parameters, {before:,} → {after:,} FLOPs an example"
    return f"{text} ({live.reason})" if live.reason else text


def measured_tables(report: Report) -> list[Table | str]:
    """Return the tables of sizes and times, where they were measured."""
    shown: list[Table | str] = [size_table(report.sizes)] if report.sizes else []
    if report.latency:
        shown += [times_table(report.latency), NO_SKIPPING]
    return shown


def _walked(search: Mapping[str, Any]) -> str:
    """Say the curve of a search in a line, by sparsity."""
    name = str(search["primary"])
    points = sorted(search["curve"], key=lambda one: float(one["sparsity"]))
    tried = ", ".join(
        f"{share(one['sparsity'])} "
        + ("diverged" if one["metric"] is None else metric(name, one["metric"]))
        for one in points
    )
    return (
        f"{name.replace('_', ' ')} at most {search['allowed']:g} points below "
        f"{metric(name, search['reference'])} on {search['examples']:,} held-out examples: {tried}"
    )


def csv_text(reports: Sequence[Report]) -> str:
    """Return the layers of all reports as CSV, one row a layer."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("name", "shape", "weights", "zeros", "sparsity", "hoyer", "dead", "p", "predicted")
    writer.writerow(("file", *names))
    for report in reports:
        for layer in report.layers:
            writer.writerow((_quoted(report.path), *(_cell(layer, name) for name in names)))
    return buffer.getvalue()


def _cell(layer: Layer, name: str) -> str:
    value = getattr(layer, name)
    if name == "shape":
        return "x".join(map(str, value))
    if name == "name":
        return _quoted(value)
    return "" if value is None else str(value)


def _quoted(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula, and a terminal from obeying it."""
    return f"'{plain(text)}" if text.startswith(("=", "+", "-", "@")) else plain(text)
