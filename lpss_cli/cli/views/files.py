"""Tables of files: how large they are, and whether two of them hold the same network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.panel import Panel
from rich.table import Table

from lpss_cli.cli.console import metric, name_column, plain, share, size

if TYPE_CHECKING:
    from lpss_cli.jobs.doctor import Finding
    from lpss_cli.jobs.oneshot import OneShotResult
    from lpss_cli.jobs.verify import Verification
    from lpss_cli.reporting.sizes import Size


def size_table(sizes: Sequence[Size]) -> Table:
    """Compare the ways to write a network, with the information bound of each."""
    table = Table(title="sizes", title_justify="left", title_style="bold")
    table.add_column("written as", no_wrap=True)
    for name in ("bytes", "dense fp32 / this", "values", "this / bound"):
        # In a narrow terminal a heading of several words takes two lines.
        table.add_column(name, justify="right", no_wrap="/" not in name)
    for item in sizes:
        against = "-" if item.against_bound is None else f"{item.against_bound:.3f}"
        dense = f"{item.against_dense:.2f}"
        table.add_row(item.name, f"{item.bytes:,}", dense, item.values, against)
    return table


def verify_table(result: Verification) -> Table:
    """Show the differences between two files, tensor by tensor."""
    table = Table(
        title=plain(f"A {result.a}, B {result.b}"),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("tensor", overflow="fold", min_width=8)
    for name in ("entries", "different", "largest", "zeros"):
        table.add_column(name, justify="right", no_wrap=name != "zeros")
    cells = name_column([item.name for item in result.tensors])
    for shown, item in zip(cells, result.tensors, strict=True):
        if item.what:
            table.add_row(shown, f"{item.count:,}", item.what)
            continue
        zeros = "the same" if item.same_zeros else f"{item.zeros[0]:,} → {item.zeros[1]:,}"
        if not item.same_zeros and item.zeros[0] == item.zeros[1]:
            zeros = f"{item.zeros[0]:,}, others"
        largest = f"{item.largest:.3g}" if item.different else "-"
        table.add_row(shown, f"{item.count:,}", f"{item.different:,}", largest, zeros)
    return table


def verdict(result: Verification) -> str:
    """Say whether two files are equal, and what their networks predict."""
    within = f"within {result.tolerance:g}" if result.tolerance else "exactly"
    lines = [f"equal {within}" if result.equal else f"not equal {within}"]
    predictions = result.predictions
    if predictions is not None:
        text = f"outputs within {predictions.largest:.1e} of the largest"
        if predictions.changed is not None:
            text = f"{predictions.changed:,} predictions changed, {text}"
        lines.append(f"{predictions.examples:,} test examples: {text}")
        for name, (a, b) in predictions.metrics.items():
            lines.append(f"{name.replace('_', ' ')} {metric(name, a)} → {metric(name, b)}")
    return "\n".join(lines)


def findings_table(findings: Sequence[Finding]) -> Table:
    """List the findings about the environment."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for item in findings:
        rows.add_row(plain(item.name), item.state, plain(item.text))
    return rows


def cut_panel(result: OneShotResult) -> Panel:
    """Summarize the one-shot pruning of a file."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    count = f"{result.zeros:,} of {result.weights:,} weights are zero"
    rows.add_row("sparsity", f"{share(result.zeros / result.weights)} ({count})")
    rows.add_row("tensors", f"{len(result.parts):,} pruned, {len(result.left):,} left as they are")
    rows.add_row("kept", f"magnitudes from {result.threshold:.3g} up")
    rows.add_row("time", f"{result.seconds:.1f} s")
    rows.add_row("file", f"{plain(result.path)} ({size(result.bytes)}), read back and compared")
    rows.add_row("next", f"lpss report {plain(result.path)}")
    return Panel(rows, title="pruned once, nothing trained", title_align="left", expand=False)
