"""The pictures on a report page: SVG that takes the page's colors, and PNG masks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from lpss_cli.reporting.histograms import ZoomedHistogram
from lpss_cli.utils import arrays

if TYPE_CHECKING:
    from torch import Tensor

# Masks with more weights or longer sides are not drawn: nobody could see a single weight.
_MAX_WEIGHTS, _MAX_SIDE = 1 << 19, 2048
_WIDTH, _HEIGHT = 260, 120
# The axis of a histogram may be this many times as long as the range of the layer's weights now.
_MAX_AXIS = 10


def histogram(after: ZoomedHistogram, before: ZoomedHistogram | None = None) -> Markup:
    """Draw a histogram of a layer's nonzero weights, with the centroids of both signs.

    Each histogram is as tall as the picture at its fullest bin, because one has more weights than
    the other.

    Args:
        after: the weights now, drawn as bars.
        before: the weights before training, drawn as a line on the same axis.
    """
    outline = before if before and _shares_axis(after, before) else None
    low = min(after.low, outline.low) if outline else after.low
    high = max(after.high, outline.high) if outline else after.high
    span = (high - low) or 1.0

    def x_of(value: float) -> float:
        return _WIDTH * (value - low) / span

    bars = "".join(
        f'<rect class="bar" x="{x_of(left):.1f}" y="{_HEIGHT * (1 - height):.1f}" '
        f'width="{max(x_of(right) - x_of(left) - 0.6, 0.5):.1f}" '
        f'height="{_HEIGHT * height:.1f}"/>'
        for left, right, height in _bins(after)
        if height
    )
    marks = "".join(
        f'<line class="mark" x1="{x_of(c):.1f}" x2="{x_of(c):.1f}" y1="0" y2="{_HEIGHT}"/>'
        for c in after.centroids
        if c is not None and low <= c <= high
    )
    line = ""
    if outline is not None:
        line = _outline([(x_of(a), x_of(b), height) for a, b, height in _bins(outline)])
    title = _summary(after, " weights") + (f"; {_summary(before)} before" if before else "")
    return _svg(title, bars + line + marks + _axis_labels(f"{low:.3g}", f"{high:.3g}"))


def _shares_axis(after: ZoomedHistogram, before: ZoomedHistogram) -> bool:
    """Return whether an axis for both leaves enough room for the weights now."""
    if after.low == after.high:
        return True
    return before.high - before.low <= _MAX_AXIS * (after.high - after.low)


def _bins(shown: ZoomedHistogram) -> list[tuple[float, float, float]]:
    """Return both ends of each bin, and its count relative to that of the fullest bin."""
    counts, fullest = shown.counts, max(shown.counts)
    width = ((shown.high - shown.low) or 1.0) / len(counts)
    return [
        (shown.low + i * width, shown.low + (i + 1) * width, count / fullest)
        for i, count in enumerate(counts)
    ]


def _outline(bins: Sequence[tuple[float, float, float]]) -> str:
    """Draw the outline of bars: (left, right, height relative to the picture's)."""
    points = [f"{bins[0][0]:.1f},{_HEIGHT}"]
    for left, right, height in bins:
        y = f"{_HEIGHT * (1 - height):.1f}"
        points += [f"{left:.1f},{y}", f"{right:.1f},{y}"]
    points.append(f"{bins[-1][1]:.1f},{_HEIGHT}")
    return f'<polyline class="before" points="{" ".join(points)}"/>'


def _summary(shown: ZoomedHistogram, noun: str = "") -> str:
    """Return how many weights there are and their range, outliers included."""
    low, high = shown.ends or (shown.low, shown.high)
    return f"{sum(shown.counts) + shown.outside:,}{noun} from {low:.3g} to {high:.3g}"


def outlier_note(after: ZoomedHistogram, before: ZoomedHistogram | None = None) -> str:
    """Return in words what a histogram of both does not show; empty if it shows everything."""
    notes = []
    if after.ends is not None:
        verb = "lies" if after.outside == 1 else "lie"
        where = _outlier_range(after, after.ends)
        notes.append(f"{_outlier_count(after)} {verb} outside the histogram, {where}")
        means = zip(("positive", "negative"), after.centroids, strict=True)
        notes += [
            f"so does the mean of the {sign} weights, {mean:.3g}"
            for sign, mean in means
            if mean is not None and not after.low <= mean <= after.high
        ]
    if before is not None and not _shares_axis(after, before):
        low, high = before.ends or (before.low, before.high)
        notes.append(
            f"before training they ranged from {low:.3g} to {high:.3g}, too far for this axis"
        )
    elif before is not None and before.ends is not None:
        where = _outlier_range(before, before.ends)
        notes.append(f"before training {_outlier_count(before)} lay outside the histogram, {where}")
    return "; ".join(notes)


def _outlier_count(shown: ZoomedHistogram) -> str:
    return f"{shown.outside:,} weight{'s' if shown.outside > 1 else ''}"


def _outlier_range(shown: ZoomedHistogram, ends: tuple[float, float]) -> str:
    """Return how far the outliers go, on the left, on the right, or on both sides."""
    low, high = ends
    left, right = low < shown.low, high > shown.high
    if left and right:
        return f"from {low:.3g} to {high:.3g}"
    if shown.outside == 1:
        return f"at {low if left else high:.3g}"
    return f"down to {low:.3g}" if left else f"up to {high:.3g}"


def agreement(points: Sequence[tuple[str, float, float]]) -> Markup | None:
    """Plot measured against predicted Hoyer, one point for each layer.

    Args:
        points: (layer, predicted, measured); None is returned if there are none.
    """
    if not points:
        return None
    side = 200
    dots = [
        f'<circle class="dot" cx="{side * p:.1f}" cy="{side * (1 - m):.1f}" r="4">'
        f"<title>{escape(name)}: predicted {p:.3f}, measured {m:.3f}</title></circle>"
        for name, p, m in points
    ]
    line = f'<line class="axis" x1="0" y1="{side}" x2="{side}" y2="0"/>'
    frame = f'<rect class="frame" width="{side}" height="{side}"/>'
    labels = (
        f'<text x="{side / 2}" y="{side + 14}" text-anchor="middle">predicted</text>'
        f'<text transform="translate(-5 {side / 2}) rotate(-90)" text-anchor="middle">measured'
        "</text>"
    )
    mean = sum(abs(p - m) for _, p, m in points) / len(points)
    title = f"predicted against measured Hoyer, mean error {mean:.3f}"
    body = frame + line + "".join(dots) + labels
    return _svg(title, body, (side, side), (16, 4, 18))


def curve(
    name: str, points: Sequence[tuple[float, float]], show: Callable[[float], str] = "{:.3g}".format
) -> Markup:
    """Draw a quantity over the epochs, on a scale from its smallest to its largest value.

    Args:
        name: name of the quantity.
        points: (epoch, value) in order, two or more.
        show: formats a value.
    """
    low, high = min(v for _, v in points), max(v for _, v in points)
    begin, end = points[0][0], points[-1][0]
    epochs, span = (end - begin) or 1.0, (high - low) or 1.0
    line = " ".join(
        f"{_WIDTH * (epoch - begin) / epochs:.1f},{_HEIGHT * (1 - (value - low) / span):.1f}"
        for epoch, value in points
    )
    title = (
        f"{name}: {show(points[0][1])} in epoch {begin:g}, {show(points[-1][1])} in epoch {end:g}"
    )
    rules = "".join(
        f'<line class="rule" x1="0" x2="{_WIDTH}" y1="{y}" y2="{y}"/>' for y in (0, _HEIGHT)
    )
    scale = "".join(
        f'<text x="{_WIDTH - 2}" y="{y}" text-anchor="end">{show(value)}</text>'
        for y, value in ((-3, high), (_HEIGHT - 3, low))
    )
    body = f'{rules}<polyline class="curve" points="{line}"/>{scale}'
    return _svg(title, body + _axis_labels(f"epoch {begin:g}", f"{end:g}"), margins=(2, 14, 16))


def is_drawable(shape: Sequence[int]) -> bool:
    """Return whether a mask of this shape is small enough to look at, and has rows to draw."""
    if len(shape) < 2 or not 0 < math.prod(shape) <= _MAX_WEIGHTS:
        return False
    return max(shape[0], math.prod(shape[1:])) <= _MAX_SIDE


def mask_image(weight: Tensor | arrays.Array) -> tuple[str, int, int]:
    """Draw where a weight is not zero: each row is a neuron, each column an input.

    Args:
        weight: a weight of a shape that :func:`is_drawable`.

    Returns:
        A data URI of a PNG, its width and its height.
    """
    from PIL import Image

    array = arrays.to_numpy(weight)
    kept = array.reshape(len(array), -1) != 0
    height, width = kept.shape
    image = Image.fromarray(kept).convert("1")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/png;base64,{data}", width, height


def _axis_labels(left: str, right: str) -> str:
    y = _HEIGHT + 12
    return (
        f'<text x="0" y="{y}">{left}</text>'
        f'<text x="{_WIDTH}" y="{y}" text-anchor="end">{right}</text>'
    )


def _svg(
    title: str,
    body: str,
    size: tuple[int, int] = (_WIDTH, _HEIGHT),
    margins: tuple[int, int, int] = (2, 2, 16),
) -> Markup:
    """Wrap a picture in an SVG element.

    Args:
        title: its description.
        body: the elements of the picture.
        size: width and height.
        margins: left and right, above, below.
    """
    side, above, below = margins
    box = f"{-side} {-above} {size[0] + 2 * side} {size[1] + above + below}"
    return Markup(
        f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
