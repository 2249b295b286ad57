"""Panels and tables of what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lpss_cli.cli.console import is_fraction, metric, number, plain, share, size
from lpss_cli.cli.views.files import cut_panel

if TYPE_CHECKING:
    from lpss_cli.jobs.oneshot import OneShotResult
    from lpss_cli.jobs.ticket import Ticket
    from lpss_cli.jobs.training_job import Outcome


# Points of accuracy; smaller drops are usually the luck of a seed.
_NOTABLE_DROP = 0.2


def trained(outcome: Outcome) -> Panel:
    """Summarize a training from scratch."""
    following = "lpss report" if outcome.report.zeros else f"lpss sparsify {outcome.report.path}"
    return outcome_panel(outcome, "trained", following)


def sparsified(result: Outcome | OneShotResult) -> Panel:
    """Summarize what became of a checkpoint: by training, or by one-shot pruning."""
    from lpss_cli.jobs.oneshot import OneShotResult

    if isinstance(result, OneShotResult):
        return cut_panel(result)
    return outcome_panel(result, "sparsified", "lpss report, lpss export")


def outcome_panel(outcome: Outcome, title: str, following: str) -> Panel:
    """Summarize a finished training, and name the next command to type."""
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
    rows.add_row("Hoyer", number(report.hoyer))
    if report.dead:
        rows.add_row("dead neurons", f"{report.dead:,}")
    rows.add_row("time", f"{outcome.seconds:.1f} s of training")
    rows.add_row("file", f"{plain(report.path)} ({size(report.file_bytes)})")
    if (drop := _drop(outcome)) >= _NOTABLE_DROP:
        more = 2 * int(report.meta["settings"]["epochs"]) or 4
        rows.add_row("lost", f"{drop:.2f} points; --epochs {more} may win them back")
    rows.add_row("next", following)
    return Panel(rows, title=title, title_align="left", expand=False)


def _drop(outcome: Outcome) -> float:
    """Return how many points of accuracy a checkpoint has lost; 0 if that is not known."""
    name = outcome.primary
    if outcome.before is None or not outcome.report.zeros or not is_fraction(name):
        return 0.0
    return 100 * (outcome.before[name] - outcome.after[name])


def ticket_panel(ticket: Ticket) -> Panel:
    """Compare a ticket with the network that its mask comes from, and with a random mask."""
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
    """Compare methods, one row per method and target; the best of each target is bold."""
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("target", "zeros", "result", "Hoyer", "s/epoch", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    best: dict[float, float] = {}
    for row in rows:
        if row["mean"] is not None:
            best[row["sparsity"]] = max(best.get(row["sparsity"], row["mean"]), row["mean"])
    for row in rows:
        mean, fraction = row["mean"], is_fraction(row["metric"])
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
            plain(row["target"]) if row["sparsity"] else "-",
            f"{row['zeros']:,}" if row["zeros"] else "-",
            Text(result, style="bold" if highest else ""),
            number(row["hoyer"]),
            number(row["seconds_per_epoch"], 2),
            size(int(row["peak_bytes"])) if row["peak_bytes"] else "-",
        )
    return table
