"""Tables of reports and plans, layer by layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.table import Table

from lpss_cli.cli.console import metric, name_column, number, plain, share, size
from lpss_cli.cli.views.export import NO_SKIPPING, times_table
from lpss_cli.cli.views.files import size_table
from lpss_cli.sparsity import layer_info

if TYPE_CHECKING:
    from lpss_cli.jobs.plan import LayerPlan, Plan
    from lpss_cli.reporting.flops import Savings
    from lpss_cli.reporting.layers import Layer
    from lpss_cli.reporting.report import Report
    from lpss_cli.sparsity.layer_info import LayerColumn


def warnings(report: Report) -> list[str]:
    """Return what a reader of the report should know first."""
    warnings = [] if report.layers else [f"{report.path} holds no prunable weight"]
    tensors = [f"{name} ({count:,})" for name, count in report.not_finite.items()]
    if tensors:
        more = f" and {len(tensors) - 5} more" if len(tensors) > 5 else ""
        text = f"{report.path} holds values that are not finite: {', '.join(tensors[:5])}{more}"
        warnings.append(text)
    return warnings


def layer_table(report: Report, width: int) -> Table:
    """Lay out a report layer by layer, with totals.

    Where the width is too small, columns are left out first; then names are shortened.
    """
    columns: dict[str, tuple[str, Callable[[Layer], str]]] = {
        "shape": ("", lambda layer: "×".join(map(str, layer.shape))),
        "live shape": ("", lambda layer: "×".join(map(str, report.live_shape(layer) or "-"))),
        "weights": (f"{report.weights:,}", lambda layer: f"{layer.weights:,}"),
        "zeros": (f"{report.zeros:,}", lambda layer: f"{layer.zeros:,}"),
        "sparsity": (share(report.sparsity), lambda layer: share(layer.sparsity)),
        "Hoyer": (number(report.hoyer), lambda layer: number(layer.hoyer)),
        "dead": (f"{report.dead:,}", lambda layer: f"{layer.dead:,}"),
    }
    declared = _shown_columns(report)
    for column in declared:
        columns[column.heading] = _mean_error(report, column), partial(_number, column)
    # Columns that are left out on a narrow terminal, the least important one first.
    dispensable = [
        *("shape", "live shape", "weights", "zeros"),
        *(column.heading for column in declared if column.predicts),
        "dead",
        *(column.heading for column in declared if not column.predicts),
    ]
    if report.live is None or not report.live.changed:
        del columns["live shape"]
    widths = {
        name: 3 + max(len(name), len(footer), *(len(cell(layer)) for layer in report.layers), 0)
        for name, (footer, cell) in columns.items()
    }
    cells = name_column([layer.name for layer in report.layers])
    room = width - 4 - max(len("all prunable"), *(cell_len(shown.name) for shown in cells), 0)
    for name in dispensable:
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


def _shown_columns(report: Report) -> list[LayerColumn]:
    """Return the columns of methods in which any layer has a number."""
    return [
        column
        for column in layer_info.columns().values()
        if any(layer.columns.get(column.name) is not None for layer in report.layers)
    ]


def _number(column: LayerColumn, layer: Layer) -> str:
    """Return what a method's column says of a layer; of a prediction, the error of it too."""
    value = layer.columns.get(column.name)
    if not column.predicts:
        return column.text(value)
    measured = getattr(layer, column.predicts)
    if value is None or measured is None:
        return "-"
    return f"{column.text(value)} {measured - value:+{column.format}}"


def _mean_error(report: Report, column: LayerColumn) -> str:
    """Return the footer of a method's column: how far predictions lie off; empty for others."""
    pairs = [
        (layer.columns.get(column.name), getattr(layer, column.predicts))
        for layer in report.layers
        if column.predicts
    ]
    errors = [abs(measured - value) for value, measured in pairs if None not in (value, measured)]
    return f"mean |err| {sum(errors) / len(errors):{column.format}}" if errors else ""


def plan_table(plan: Plan, width: int) -> Table:
    """Lay out a plan layer by layer; minor columns are there where the width allows it."""
    wide = width >= max(len(layer.name) for layer in plan.layers) + 80
    columns: dict[str, tuple[str, Callable[[LayerPlan], str]]] = {}
    if wide:
        columns["weights"] = f"{plan.weights:,}", lambda layer: f"{layer.weights:,}"
    columns["fan-in"] = "", lambda x: "-" if x.fan_in is None else f"{x.fan_in:,}"
    columns |= _plan_columns(plan, wide, at_target=False)
    columns["kept"] = f"{plan.kept:,}", lambda layer: f"{layer.kept:,}"
    columns["sparsity"] = (
        share(1 - plan.kept / plan.weights),
        lambda layer: share(1 - layer.kept / layer.weights),
    )
    columns |= _plan_columns(plan, wide, at_target=True)
    table = Table(
        title=f"{plain(plan.source)} at {share(plan.sparsity)} zeros, ranking {plan.ranking}",
        title_justify="left",
        title_style="bold",
        show_footer=True,
    )
    table.add_column("layer", "all prunable", overflow="fold", min_width=8)
    for name, (footer, _) in columns.items():
        table.add_column(name, footer, justify="right", no_wrap=True)
    for layer, shown in zip(plan.layers, name_column([x.name for x in plan.layers]), strict=True):
        table.add_row(shown, *(cell(layer) for _, cell in columns.values()))
    return table


def _plan_columns(
    plan: Plan, wide: bool, *, at_target: bool
) -> dict[str, tuple[str, Callable[[LayerPlan], str]]]:
    """Return heading → footer and cells, of the method's columns before or after pruning."""

    def cell(column: LayerColumn, layer: LayerPlan) -> str:
        return column.text(getattr(layer, column.name))

    return {
        column.heading: ("", partial(cell, column))
        for column in plan.columns
        if column.at_target == at_target and (wide or not column.minor)
    }


def origin_table(report: Report) -> Table:
    """Say how the checkpoint was made, as far as its record tells."""
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
        lines["search"] = _search_text(meta["search"])
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
    """Say what is left without dead units: parameters, and operations per example."""
    old, new = live.parameters
    before, after = live.flops
    if not live.changed:
        text = f"no unit is without input or use; {before:,} FLOPs per example"
    else:
        text = f"{old:,} → {new:,} parameters, {before:,} → {after:,} FLOPs per example"
    return f"{text} ({live.reason})" if live.reason else text


def measured_tables(report: Report) -> list[Table | str]:
    """Return the tables of sizes and times, if they were measured."""
    tables: list[Table | str] = [size_table(report.sizes)] if report.sizes else []
    if report.latency:
        tables += [times_table(report.latency), NO_SKIPPING]
    return tables


def _search_text(search: Mapping[str, Any]) -> str:
    """Return the curve of a search in a line, by sparsity."""
    name = str(search["primary"])
    tries = sorted(search["curve"], key=lambda point: float(point["sparsity"]))
    tried = ", ".join(
        f"{share(point['sparsity'])} "
        + ("diverged" if point["metric"] is None else metric(name, point["metric"]))
        for point in tries
    )
    return (
        f"{name.replace('_', ' ')} at most {search['allowed']:g} points below "
        f"{metric(name, search['reference'])} on {search['examples']:,} held-out examples: {tried}"
    )


def csv_text(reports: Sequence[Report]) -> str:
    """Return the layers of all reports as CSV, one row per layer."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    counted = ("name", "shape", "weights", "zeros", "sparsity", "hoyer", "dead")
    names = (*counted, *layer_info.columns())
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
    """Return a name that no spreadsheet takes for a formula and no terminal obeys."""
    return f"'{plain(text)}" if text.startswith(("=", "+", "-", "@")) else plain(text)
