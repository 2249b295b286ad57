"""Pictures of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by everybody; markers for those who print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*Xp"  # one more than colours: no two methods look the same
_LINES = ("-", ":", "-.")  # of the second and third that have a colour


def accuracy_against_sparsity(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw mean and standard deviation of every method over the kept part of the weights.

    Args:
        rows: of ``comparing.compare``; the dense run becomes a horizontal line.
        title: above the picture.
        path: ``.svg`` or ``.png``; replaced if it exists.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "lpss"  # the same picture for the same numbers
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    known = [row for row in rows if row["mean"] is not None]
    scale = 100.0 if known and known[0]["metric"] in ("accuracy", "balanced_accuracy") else 1.0
    ratios = sorted({1 / (1 - r["sparsity"]) for r in known if r["sparsity"] > 0}) or [1.0]
    axes.set_xscale("log")
    # Said, not found out: a single target has no width that a margin could be a part of.
    margin = 1.1 * (ratios[-1] / ratios[0]) ** 0.03
    axes.set_xlim(ratios[0] / margin, ratios[-1] * margin)
    _curves(axes, known, scale)
    axes.set_xticks(ratios, list(map(tick, ratios)), minor=False)
    axes.minorticks_off()
    axes.set_xlabel("zeros, weights / kept weights")
    metric = known[0]["metric"].replace("_", " ") if known else ""
    axes.set_ylabel(f"{metric}, %" if scale == 100 else metric)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if known:
        axes.legend(fontsize="small")
    kind = path.suffix.removeprefix(".")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def tick(ratio: float) -> str:
    """Write a compression ratio > 1 under an axis, with the digits that tell it from 100 %."""
    zeros, digits = 100 - 100 / ratio, 4
    while float(f"{zeros:.{digits}g}") >= 100 and digits < 12:
        digits += 1
    return f"{zeros:.{digits}g} %\n{float(f'{ratio:.3g}'):,g}×"


def _curves(axes: Axes, rows: Sequence[dict[str, Any]], scale: float) -> None:
    """Draw a curve a method, and the dense runs, which have no sparsity, as a line."""
    names = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"] > 0))
    for index, name in enumerate(names):
        own = sorted((r for r in rows if r["method"] == name), key=lambda r: r["sparsity"])
        axes.errorbar(
            [1 / (1 - r["sparsity"]) for r in own],
            [scale * r["mean"] for r in own],
            [scale * (r["sd"] or 0.0) for r in own],
            label=name,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
            capsize=3,
            linewidth=1.5,
        )
    for row in rows:
        if row["sparsity"] == 0:
            axes.axhline(scale * row["mean"], color="grey", linestyle="--", label=row["method"])
