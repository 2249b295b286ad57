"""Reports as one self-contained web page: no network, light and dark, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lpss_cli.reporting import histograms
from lpss_cli.reporting.histograms import ZoomedHistogram, zoomed_histogram
from lpss_cli.reporting.html import figures
from lpss_cli.reporting.layers import Layer
from lpss_cli.reporting.report import Report
from lpss_cli.sparsity import layer_info
from lpss_cli.utils.arrays import Array
from lpss_cli.utils.files import atomic_write
from lpss_cli.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor] | Mapping[str, Array]

# Metrics that are shown in percent.
_FRACTIONS = ("accuracy", "balanced_accuracy")
# Labels of recorded quantities whose keys are not.
_LABELS = {"hoyer": "Hoyer", "lr": "learning rate"}
_UNITS = ("B", "kB", "MB", "GB")


def write(path: Path, pages: Sequence[tuple[Report, Tensors]]) -> int:
    """Write a page about one or several checkpoints, side by side.

    Args:
        path: the file; it is replaced in one piece.
        pages: each report with its checkpoint's tensors, whose masks are drawn if they are small.

    Returns:
        The number of bytes written.
    """
    text = render(pages)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path.stat().st_size


def render(pages: Sequence[tuple[Report, Tensors]]) -> str:
    """Return the page as HTML; every text from a file is escaped.

    Args:
        pages: see :func:`write`.
    """
    variables = [_page_variables(report, tensors) for report, tensors in pages]
    return _template().render(pages=variables, version=__version__)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lpss_cli.reporting", "html"),
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


def _page_variables(report: Report, tensors: Tensors) -> dict[str, Any]:
    """Return what the template needs about one checkpoint."""
    meta, initial = report.meta, histograms.of_record(report.meta)
    declared = layer_info.columns().values()
    predictions = _predictions(report.layers)
    predicted = [
        (layer.name, prediction, layer.hoyer)
        for layer, prediction in zip(report.layers, predictions, strict=True)
        if prediction is not None and layer.hoyer is not None
    ]
    masks = {
        layer.name: figures.mask_image(tensors[layer.name])
        for layer in report.layers
        if layer.zeros and layer.name in tensors and figures.is_drawable(layer.shape)
    }
    return {
        "report": report,
        "meta": meta,
        "cards": _cards(report),
        "metrics": _metrics(meta),
        "masks": masks,
        "histograms": [
            (layer, figures.histogram(after, before), figures.outlier_note(after, before))
            for layer, after, before in _histograms(report, tensors, initial)
        ],
        "has_initial": any(layer.name in initial for layer in report.layers),
        "agreement": figures.agreement(predicted),
        "predicted": bool(predicted),
        "layers": list(zip(report.layers, predictions, strict=True)),
        "columns": [column for column in declared if not column.predicts],
        "curves": _curves(meta),
        "origin": _origin(meta),
    }


def _histograms(
    report: Report, tensors: Tensors, initial: Mapping[str, ZoomedHistogram]
) -> Iterator[tuple[Layer, ZoomedHistogram, ZoomedHistogram | None]]:
    """Yield each layer with nonzero weights, their histogram, and the one before training."""
    for layer in report.layers:
        if layer.survivors is not None:
            weight = partial(tensors.__getitem__, layer.name)
            yield layer, zoomed_histogram(layer.survivors, weight), initial.get(layer.name)


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """Return (title, figure, remark) for each card of the summary."""
    cards = []
    for name, before, after in _metrics(report.meta)[:1]:
        remark = f"was {metric(before, name)}" if before is not None else "trained from scratch"
        cards.append((name.replace("_", " "), metric(after, name), remark))
    kept = report.weights - report.zeros
    cards.append(("zeros", percent(report.sparsity), f"{report.zeros:,} of {report.weights:,}"))
    cards.append(
        ("kept weights", f"{kept:,}", f"1 in {report.compression:.4g}" if kept else "none")
    )
    cards.append(("Hoyer", number(report.hoyer), "0: all equal; 1: one weight per neuron"))
    cards.append(("file", size(report.file_bytes), f"{report.parameters:,} parameters"))
    if report.live is not None:
        (flops_before, flops_after), (total, live) = report.live.flops, report.live.parameters
        changed = report.live.changed
        remark = f"per example; was {count(flops_before)}" if changed else "per example"
        cards.append(("FLOPs", count(flops_after), remark))
        if changed:
            cards.append(("live parameters", count(live), f"of {total:,}"))
    if report.dead:
        cards.append(("dead neurons", f"{report.dead:,}", "rows without a weight"))
    return cards


def _metrics(meta: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Return (name, before, after) of every metric, the primary one first."""
    measured = meta.get("metrics") or {}
    before, after = measured.get("before") or {}, measured.get("after") or {}
    primary = meta.get("primary_metric")
    names = sorted(after, key=lambda name: name != primary)
    return [(name, before.get(name), after[name]) for name in names]


def _predictions(layers: Sequence[Layer]) -> list[float | None]:
    """Return the Hoyer sparsity that a method predicts for each layer; None where none does."""
    declared = layer_info.columns().values()
    names = [column.name for column in declared if column.predicts == "hoyer"]
    return [
        next((value for name in names if (value := layer.columns.get(name)) is not None), None)
        for layer in layers
    ]


def _curves(meta: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Return (caption, picture) of every quantity that changes over the epochs."""
    pictures = []
    for key, points in _history(meta).items():
        label = _LABELS.get(key, key.replace("_", " "))

        def show(value: float, key: str = key) -> str:
            is_fraction = key in (*_FRACTIONS, "sparsity")
            return percent(value) if is_fraction else f"{value:.{2 if key == 'lr' else 3}g}"

        # The unit is written once, because the caption must fit its picture.
        first, last = (show(value) for _, value in (points[0], points[-1]))
        caption = f"{label}: {first.removesuffix(' %')} → {last}"
        pictures.append((caption, figures.curve(label, points, show)))
    return pictures


def _history(meta: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return name → (epoch, value) of what changes over the epochs, the primary metric first.

    The metric of the input checkpoint is that of epoch 0. Epochs that were not measured have no
    point.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, before, _ in _metrics(meta)[:1]:
        curves[name] = [] if before is None else [(0, before)]
    for index, epoch in enumerate(meta.get("history") or [], 1):
        for name, value in epoch.items():
            if name not in ("epoch", "seconds") and value is not None and math.isfinite(value):
                curves.setdefault(name, []).append((epoch.get("epoch", index), value))
    return {
        name: points for name, points in curves.items() if len({value for _, value in points}) > 1
    }


def _origin(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of what the checkpoint says about how it was made."""
    versions = ", ".join(f"{k} {v}" for k, v in (meta.get("versions") or {}).items())
    rows = {
        "command": meta.get("command"),
        "network": meta.get("arch"),
        "data": meta.get("data_name"),
        "method": meta.get("method"),
        "method options": _options_text(meta.get("config") or {}),
        "settings": _options_text(meta.get("settings") or {}),
        "versions": versions,
        "training time": f"{meta['seconds']:.1f} s" if meta.get("seconds") else None,
        "data fingerprint": meta.get("data_fingerprint"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _options_text(values: Mapping[str, Any]) -> str:
    """Return options in words; an empty list is "none", and None means chosen by the method."""
    texts = []
    for name, value in values.items():
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, (list, tuple)):
            text = " ".join(map(str, value)) or "none"
        else:
            text = "chosen" if value is None else str(value)
        texts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(texts)


def percent(fraction: float) -> str:
    """Return a fraction in percent; only 1 gives 100.00 % and only 0 gives 0.00 %."""
    text = f"{100 * fraction:.2f}"
    return f"{text if fraction in (0, 1) or text not in ('0.00', '100.00') else 100 * fraction} %"


def size(count: int) -> str:
    """Return a number of bytes with four digits and a unit."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g} {_UNITS[unit]}" if unit else f"{count} B"


def count(value: float) -> str:
    """Return a count with three digits and a unit."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{value:g}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits after the point, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def metric(value: float, name: str) -> str:
    """Return the value of a metric; fractions are in percent."""
    return f"{100 * value:.2f} %" if name in _FRACTIONS else f"{value:.4g}"
