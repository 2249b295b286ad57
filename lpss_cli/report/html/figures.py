"""The pictures of a report page: SVG texts that take the page's colours, and PNG masks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from lpss_cli.report.histograms import ZoomedHistogram
from lpss_cli.utils import arrays

if TYPE_CHECKING:
    from torch import Tensor

# Masks with more weights or longer sides are not drawn: nobody could see a weight.
_LARGEST, _LONGEST = 1 << 19, 2048
_WIDTH, _HEIGHT = 260, 120
# The axis of a histogram may be so many times as long as what the layer takes of it now.
_ROOM = 10


def histogram(after: ZoomedHistogram, before: ZoomedHistogram | None = None) -> Markup:
    """Draw how the weights that are not zero spread, with the centroids of both signs.

    Args:
        after: now: bars.
        before: before training: a line on the same axis. Each is as tall as the page at its
            fullest bin, for one has more weights than the other.
    """
    drawn = before if before and _has_room(after, before) else None
    low = min(after.low, drawn.low) if drawn else after.low
    high = max(after.high, drawn.high) if drawn else after.high
    span = (high - low) or 1.0

    def across(value: float) -> float:
        return _WIDTH * (value - low) / span

    bars = "".join(
        f'<rect class="bar" x="{across(left):.1f}" y="{_HEIGHT * (1 - part):.1f}" '
        f'width="{max(across(right) - across(left) - 0.6, 0.5):.1f}" '
        f'height="{_HEIGHT * part:.1f}"/>'
        for left, right, part in _bins(after)
        if part
    )
    marks = "".join(
        f'<line class="mark" x1="{across(c):.1f}" x2="{across(c):.1f}" y1="0" y2="{_HEIGHT}"/>'
        for c in after.centroids
        if c is not None and low <= c <= high
    )
    line = ""
    if drawn is not None:
        line = _steps([(across(a), across(b), part) for a, b, part in _bins(drawn)])
    title = _all(after, " weights") + (f"; {_all(before)} before" if before else "")
    return _svg(title, bars + line + marks + _ends(f"{low:.3g}", f"{high:.3g}"))


def _all(spread: ZoomedHistogram, of: str = "") -> str:
    """Say how many weights there are, the far ones too, and from where to where."""
    low, high = spread.ends or (spread.low, spread.high)
    return f"{sum(spread.counts) + spread.outside:,}{of} from {low:.3g} to {high:.3g}"


def further(after: ZoomedHistogram, before: ZoomedHistogram | None = None) -> str:
    """Say what a histogram of the two does not show; nothing where it shows all."""
    said = []
    if after.ends is not None:
        verb = "lies" if after.outside == 1 else "lie"
        said.append(f"{_far(after)} {verb} further out, {_where(after, after.ends)}")
        means = zip(("positive", "negative"), after.centroids, strict=True)
        said += [
            f"the mean of the {sign} ones, {mean:.3g}, too"
            for sign, mean in means
            if mean is not None and not after.low <= mean <= after.high
        ]
    if before is not None and not _has_room(after, before):
        low, high = before.ends or (before.low, before.high)
        said.append(
            f"before training they were from {low:.3g} to {high:.3g}, too far for this axis"
        )
    elif before is not None and before.ends is not None:
        said.append(
            f"before training {_far(before)} lay further out, {_where(before, before.ends)}"
        )
    return "; ".join(said)


def _has_room(after: ZoomedHistogram, before: ZoomedHistogram) -> bool:
    """Whether an axis that holds both leaves room for what is there now, if that is an interval."""
    return after.low == after.high or before.high - before.low <= _ROOM * (after.high - after.low)


def _far(spread: ZoomedHistogram) -> str:
    return f"{spread.outside:,} weight{'s' if spread.outside > 1 else ''}"


def _where(spread: ZoomedHistogram, ends: tuple[float, float]) -> str:
    """Say how far the far ones go; they are on the left, on the right, or on both sides."""
    low, high = ends
    left, right = low < spread.low, high > spread.high
    if left and right:
        return f"from {low:.3g} to {high:.3g}"
    if spread.outside == 1:
        return f"at {low if left else high:.3g}"
    return f"down to {low:.3g}" if left else f"up to {high:.3g}"


def _bins(spread: ZoomedHistogram) -> list[tuple[float, float, float]]:
    """Return both ends of each bin, and its count as a part of the fullest one's."""
    counts, top = spread.counts, max(spread.counts)
    width = ((spread.high - spread.low) or 1.0) / len(counts)
    return [
        (spread.low + i * width, spread.low + (i + 1) * width, count / top)
        for i, count in enumerate(counts)
    ]


def _steps(bins: Sequence[tuple[float, float, float]]) -> str:
    """Draw the outline of bars: (left, right, part of the full height)."""
    points = [f"{bins[0][0]:.1f},{_HEIGHT}"]
    for left, right, part in bins:
        y = f"{_HEIGHT * (1 - part):.1f}"
        points += [f"{left:.1f},{y}", f"{right:.1f},{y}"]
    points.append(f"{bins[-1][1]:.1f},{_HEIGHT}")
    return f'<polyline class="before" points="{" ".join(points)}"/>'


def agreement(points: Sequence[tuple[str, float, float]]) -> Markup | None:
    """Draw measured against predicted Hoyer, a point a layer; None where nothing is predicted."""
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
    """Draw a quantity over the epochs.

    Args:
        name: of the quantity.
        points: (epoch, value) in order, two or more; the scale is from the least to the largest.
        show: writes a value.
    """
    low, high = min(v for _, v in points), max(v for _, v in points)
    begin, end = points[0][0], points[-1][0]
    across, up = (end - begin) or 1.0, (high - low) or 1.0
    line = " ".join(
        f"{_WIDTH * (epoch - begin) / across:.1f},{_HEIGHT * (1 - (v - low) / up):.1f}"
        for epoch, v in points
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
    return _svg(title, body + _ends(f"epoch {begin:g}", f"{end:g}"), margins=(2, 14, 16))


def drawable(shape: Sequence[int]) -> bool:
    """Say whether a mask of this shape is small enough to look at, and has rows to draw."""
    if len(shape) < 2 or not 0 < math.prod(shape) <= _LARGEST:
        return False
    return max(shape[0], math.prod(shape[1:])) <= _LONGEST


def mask_picture(weight: Tensor | arrays.Array) -> tuple[str, int, int]:
    """Draw where a `drawable` weight is not zero: a row a neuron, a column an input.

    Returns:
        A data URI of a PNG and its width and height.
    """
    from PIL import Image

    array = arrays.to_numpy(weight)
    kept = array.reshape(len(array), -1) != 0
    height, width = kept.shape
    picture = Image.fromarray(kept).convert("1")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/png;base64,{data}", width, height


def _ends(left: str, right: str) -> str:
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
    """Wrap a picture; ``margins`` are left and right, above, below."""
    side, above, below = margins
    box = f"{-side} {-above} {size[0] + 2 * side} {size[1] + above + below}"
    return Markup(
        f'<svg viewBox="{box}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
