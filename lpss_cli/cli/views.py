"""Tables and panels: numbers from the library, laid out for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lpss_cli.cli.out import plain

if TYPE_CHECKING:
    from lpss_cli.exporting import Exported
    from lpss_cli.layers import Layer
    from lpss_cli.outcome import Outcome
    from lpss_cli.planning import Plan
    from lpss_cli.reporting import Report
    from lpss_cli.tickets import Ticket

_FRACTIONS = ("accuracy", "balanced_accuracy")


def metric(name: str, value: float) -> str:
    """Return a metric for people: accuracies in percent, the rest with four digits."""
    return f"{value:.2%}" if name in _FRACTIONS else f"{value:.4g}"


def size(count: int) -> str:
    """Return bytes for people, in units of 1000."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def share(fraction: float) -> str:
    """Return a sparsity in percent, with the digits that tell it from 100 %."""
    digits = 2
    while fraction < 1 and digits < 8 and round(100 * fraction, digits) == 100:
        digits += 1
    return f"{fraction:.{digits}%}"


def warnings(report: Report) -> list[str]:
    """Return what a reader of the report should know first."""
    found = [] if report.layers else [f"{report.path} holds no prunable weight"]
    many = [f"{name} ({count:,})" for name, count in report.not_finite.items()]
    if many:
        more = f" and {len(many) - 5} more" if len(many) > 5 else ""
        text = f"{report.path} holds values that are not finite: {', '.join(many[:5])}{more}"
        found.append(text)
    return found


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def outcome_panel(outcome: Outcome, title: str, following: str) -> Panel:
    """Summarise a finished training job and name the next command to type."""
    report = outcome.report
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    for name, after in outcome.after.items():
        before = f"{metric(name, outcome.before[name])} → " if outcome.before else ""
        where = "" if outcome.measured_on == "test" else f" (on the {outcome.measured_on})"
        rows.add_row(name.replace("_", " "), f"{before}{metric(name, after)}{where}")
    if outcome.before_cut is not None:
        uncut = metric(outcome.primary, outcome.before_cut[outcome.primary])
        rows.add_row("before the cut", f"{uncut} {outcome.primary.replace('_', ' ')}")
    count = f"{report.zeros:,} of {report.weights:,} prunable weights are zero"
    ratio = f", {report.compression:.3g}×" if report.zeros else ""
    rows.add_row("sparsity", f"{share(report.sparsity)} ({count}{ratio})")
    rows.add_row("Hoyer", _number(report.hoyer))
    if report.dead:
        rows.add_row("dead neurons", f"{report.dead:,}")
    rows.add_row("time", f"{outcome.seconds:.1f} s of training")
    rows.add_row("file", f"{plain(report.path)} ({size(report.file_bytes)})")
    rows.add_row("next", following)
    return Panel(rows, title=title, title_align="left", expand=False)


def ticket_panel(ticket: Ticket) -> Panel:
    """Set a ticket beside the network its mask comes from and beside a random mask."""
    outcome = ticket.outcome
    name = outcome.primary
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    where = "" if outcome.measured_on == "test" else f" (on the {outcome.measured_on})"
    rows.add_row("measured", f"{name.replace('_', ' ')}{where}")
    rows.add_row("the sparse network", metric(name, ticket.source[name]))
    before = outcome.before or {}
    rows.add_row(f"its mask, {ticket.start}", f"{metric(name, before[name])} before any training")
    rows.add_row("trained again", metric(name, outcome.after[name]))
    if ticket.control is not None:
        rows.add_row("a random mask, trained", metric(name, ticket.control[name]))
    report = outcome.report
    rows.add_row("sparsity", f"{share(report.sparsity)} ({report.zeros:,} of {report.weights:,})")
    if ticket.initial_file is not None and ticket.initial_bytes is not None:
        rows.add_row("start", f"{plain(ticket.initial_file)} ({size(ticket.initial_bytes)})")
    rows.add_row("file", f"{plain(report.path)} ({size(report.file_bytes)})")
    return Panel(rows, title="ticket", title_align="left", expand=False)


def compare_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Set methods side by side, one row a method and target; the best of a target is bold."""
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("sparsity", "zeros", "result", "Hoyer", "s/epoch", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    best: dict[float, float] = {}
    for row in rows:
        if row["mean"] is not None:
            best[row["sparsity"]] = max(best.get(row["sparsity"], row["mean"]), row["mean"])
    for row in rows:
        mean, fraction = row["mean"], row["metric"] in _FRACTIONS
        result = "diverged"
        if mean is not None:
            result = f"{100 * mean:.2f}" if fraction else f"{mean:.4g}"
            if row["sd"] is not None:
                result += f" ± {100 * row['sd']:.2f}" if fraction else f" ± {row['sd']:.2g}"
            if row["failed"]:
                result += f" ({row['failed']} diverged)"
        highest = fraction and row["sparsity"] and mean == best.get(row["sparsity"])
        table.add_row(
            row["method"],
            share(row["sparsity"]) if row["sparsity"] else "-",
            f"{row['zeros']:,}" if row["zeros"] else "-",
            Text(result, style="bold" if highest else ""),
            _number(row["hoyer"]),
            _number(row["seconds_per_epoch"], 2),
            size(int(row["peak_bytes"])) if row["peak_bytes"] else "-",
        )
    return table


# Columns that a narrow terminal goes without, the least missed first.
_DISPENSABLE = ("shape", "weights", "zeros", "predicted", "dead", "p")


def layer_table(report: Report, width: int) -> Table:
    """Lay out a report layer by layer, with totals; names are folded only as a last resort."""
    columns: dict[str, tuple[str, Callable[[Layer], str]]] = {
        "shape": ("", lambda layer: "×".join(map(str, layer.shape))),
        "weights": (f"{report.weights:,}", lambda layer: f"{layer.weights:,}"),
        "zeros": (f"{report.zeros:,}", lambda layer: f"{layer.zeros:,}"),
        "sparsity": (share(report.sparsity), lambda layer: share(layer.sparsity)),
        "Hoyer": (_number(report.hoyer), lambda layer: _number(layer.hoyer)),
        "dead": (f"{report.dead:,}", lambda layer: f"{layer.dead:,}"),
        "p": ("", lambda layer: "-" if layer.p is None else f"{layer.p:.4g}"),
        "predicted": (_error(report), _prediction),
    }
    for name in ("p", "predicted"):
        if all(getattr(layer, name) is None for layer in report.layers):
            del columns[name]
    widths = {
        name: 3 + max(len(name), len(footer), *(len(cell(layer)) for layer in report.layers), 0)
        for name, (footer, cell) in columns.items()
    }
    names = [plain(layer.name) for layer in report.layers]
    room = width - 4 - max(len("all prunable"), *map(len, names), 0)
    for name in _DISPENSABLE:
        if sum(widths.values()) > room and name in columns:
            del columns[name], widths[name]
    table = Table(
        title=plain(report.path), title_justify="left", title_style="bold", show_footer=True
    )
    table.add_column("layer", "all prunable", overflow="fold", min_width=8)
    for name, (footer, _) in columns.items():
        justify: Literal["left", "right"] = "left" if name == "shape" else "right"
        table.add_column(name, footer, justify=justify, no_wrap=True)
    for name, layer in zip(names, report.layers, strict=True):
        table.add_row(name, *(cell(layer) for _, cell in columns.values()))
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
    for layer in plan.layers:
        table.add_row(
            plain(layer.name),
            *([f"{layer.weights:,}"] if wide else []),
            "-" if layer.fan_in is None else f"{layer.fan_in:,}",
            "-" if layer.p is None else f"{layer.p:.4g}",
            _number(layer.hoyer),
            *([_number(layer.hoyer_limit)] if wide else []),
            f"{layer.kept:,}",
            share(1 - layer.kept / layer.weights),
            _number(layer.hoyer_at_target),
        )
    return table


def origin_table(report: Report) -> Table:
    """Say how the checkpoint was made, as far as it says so itself."""
    meta = report.meta
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("file", f"{size(report.file_bytes)}, {report.parameters:,} parameters")
    bound = f"{size(round(report.bound_bytes))} with {report.bound_values} values"
    if report.kind == "pack":
        bound += f"; the file is {report.file_bytes / max(1, report.bound_bytes):.3f} of it"
    rows.add_row("bound", bound)
    if not meta:
        return rows
    settings: Mapping[str, Any] = meta.get("settings") or {}
    lines = {
        "network": str(meta.get("arch", "")),
        "data": f"{meta.get('data_name')}, seed {settings.get('seed')}",
        "method": str(meta.get("method", "")),
    }
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
        rows.add_row(name, plain(text))
    return rows


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


def export_table(written: Sequence[Exported]) -> Table:
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
