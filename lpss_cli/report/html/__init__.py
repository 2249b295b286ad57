"""Reports as one self-contained web page: no network, light and dark, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lpss_cli.report import histograms
from lpss_cli.report.histograms import ZoomedHistogram, zoomed_histogram
from lpss_cli.report.html import figures
from lpss_cli.report.layers import Layer
from lpss_cli.report.report import Report
from lpss_cli.utils.arrays import Array
from lpss_cli.utils.files import replacing
from lpss_cli.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    Values = Mapping[str, Tensor] | Mapping[str, Array]

_FRACTIONS = ("accuracy", "balanced_accuracy")
# What epochs record, as people call it.
_NAMES = {"hoyer": "Hoyer", "lr": "learning rate"}
_UNITS = ("B", "kB", "MB", "GB")


def write(path: Path, pages: Sequence[tuple[Report, Values]]) -> int:
    """Write a page about one or several checkpoints, side by side.

    Args:
        path: the file; it is replaced in one piece.
        pages: each report with its checkpoint's tensors, of which small masks are drawn.

    Returns:
        The number of bytes written.
    """
    text = render(pages)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path.stat().st_size


def render(pages: Sequence[tuple[Report, Values]]) -> str:
    """Return the page as HTML; every text from a file is escaped."""
    shown = [_page(report, tensors) for report, tensors in pages]
    return _template().render(pages=shown, version=__version__)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lpss_cli.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "product": math.prod,
        "percent": percent,
        "size": size,
        "number": number,
        "metric": metric,
    }
    return environment.get_template("report.html")


def _page(report: Report, tensors: Values) -> dict[str, Any]:
    meta, began = report.meta, histograms.of_record(report.meta)
    predicted = _predicted(report.layers)
    masks = {
        layer.name: figures.mask_picture(tensors[layer.name])
        for layer in report.layers
        if layer.zeros and layer.name in tensors and figures.drawable(layer.shape)
    }
    return {
        "report": report,
        "meta": meta,
        "cards": _cards(report),
        "metrics": _metrics(meta),
        "masks": masks,
        "histograms": [
            (layer, figures.histogram(near, before), figures.further(near, before))
            for layer, near, before in _spreads(report, tensors, began)
        ],
        "began": any(layer.name in began for layer in report.layers),
        "agreement": figures.agreement(predicted),
        "predicted": bool(predicted),
        "curves": _curves(meta),
        "origin": _origin(meta),
    }


def _spreads(
    report: Report, tensors: Values, began: Mapping[str, ZoomedHistogram]
) -> Iterator[tuple[Layer, ZoomedHistogram, ZoomedHistogram | None]]:
    """Yield the layers with weights, how these are spread, and how they were before training."""
    for layer in report.layers:
        if layer.survivors is not None:
            near = zoomed_histogram(layer.survivors, partial(tensors.__getitem__, layer.name))
            yield layer, near, began.get(layer.name)


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """Return (title, figure, remark) of the summary."""
    cards = []
    for name, before, after in _metrics(report.meta)[:1]:
        remark = f"was {metric(before, name)}" if before is not None else "trained from scratch"
        cards.append((name.replace("_", " "), metric(after, name), remark))
    kept = report.weights - report.zeros
    cards.append(("zeros", percent(report.sparsity), f"{report.zeros:,} of {report.weights:,}"))
    cards.append(
        ("kept weights", f"{kept:,}", f"1 in {report.compression:.4g}" if kept else "none")
    )
    cards.append(("Hoyer", number(report.hoyer), "0 all equal, 1 one weight a neuron"))
    cards.append(("file", size(report.file_bytes), f"{report.parameters:,} parameters"))
    if report.live is not None:
        (before, after), (old, new) = report.live.flops, report.live.parameters
        changed = report.live.changed
        cards.append(
            ("FLOPs", count(after), f"an example; was {count(before)}" if changed else "an example")
        )
        if changed:
            cards.append(("live parameters", count(new), f"of {old:,}"))
    if report.dead:
        cards.append(("dead neurons", f"{report.dead:,}", "rows without a weight"))
    return cards


def _metrics(meta: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Return (name, before, after) of every metric, the one that counts first."""
    measured = meta.get("metrics") or {}
    before, after = measured.get("before") or {}, measured.get("after") or {}
    primary = meta.get("primary_metric")
    names = sorted(after, key=lambda name: name != primary)
    return [(name, before.get(name), after[name]) for name in names]


def _predicted(layers: Sequence[Layer]) -> list[tuple[str, float, float]]:
    """Return (layer, predicted, measured) Hoyer, where there are both."""
    return [
        (layer.name, layer.predicted, layer.hoyer)
        for layer in layers
        if layer.predicted is not None and layer.hoyer is not None
    ]


def _history(meta: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return (epoch, value) of what changes over the epochs, by name, the metric first.

    A checkpoint's own metric is that of epoch 0. An epoch that was not measured has no point.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, before, _ in _metrics(meta)[:1]:
        found[name] = [] if before is None else [(0, before)]
    for number, epoch in enumerate(meta.get("history") or [], 1):
        for name, value in epoch.items():
            if name not in ("epoch", "seconds") and value is not None and math.isfinite(value):
                found.setdefault(name, []).append((epoch.get("epoch", number), value))
    return {
        name: points for name, points in found.items() if len({value for _, value in points}) > 1
    }


def _curves(meta: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Return (caption, picture) of every quantity that changes over the epochs."""
    pictures = []
    for key, points in _history(meta).items():
        name = _NAMES.get(key, key.replace("_", " "))

        def show(value: float, key: str = key) -> str:
            fraction = key in (*_FRACTIONS, "sparsity")
            return percent(value) if fraction else f"{value:.{2 if key == 'lr' else 3}g}"

        # The first one's unit is the last one's: the caption must fit its picture.
        first, last = (show(value) for _, value in (points[0], points[-1]))
        caption = f"{name}: {first.removesuffix(' %')} → {last}"
        pictures.append((caption, figures.curve(name, points, show)))
    return pictures


def _origin(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the checkpoint was made, as far as it says so."""
    versions = ", ".join(f"{k} {v}" for k, v in (meta.get("versions") or {}).items())
    rows = {
        "command": meta.get("command"),
        "network": meta.get("arch"),
        "data": meta.get("data_name"),
        "method": meta.get("method"),
        "its options": _facts(meta.get("config") or {}),
        "settings": _facts(meta.get("settings") or {}),
        "versions": versions,
        "training": f"{meta['seconds']:.1f} s" if meta.get("seconds") else None,
        "data fingerprint": meta.get("data_fingerprint"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _facts(values: Mapping[str, Any]) -> str:
    """Write options for people: an empty list is none, None was left to the method."""
    shown = []
    for name, value in values.items():
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            text = " ".join(map(str, value)) or "none"
        else:
            text = "chosen" if value is None else str(value)
        shown.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(shown)


def percent(fraction: float) -> str:
    """Write a share so that 100 % means all."""
    text = f"{100 * fraction:.2f}"
    return f"{text if fraction in (0, 1) or text not in ('0.00', '100.00') else 100 * fraction} %"


def size(count: int) -> str:
    """Write a number of bytes with three digits or so."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g} {_UNITS[unit]}" if unit else f"{count} B"


def count(value: float) -> str:
    """Write a number of things with three digits."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{value:g}"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def metric(value: float, name: str) -> str:
    """Write a metric: fractions in percent."""
    return f"{100 * value:.2f} %" if name in _FRACTIONS else f"{value:.4g}"
