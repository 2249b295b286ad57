"""Fill in the flags and the measured figures of the pages in docs/methods.

    python docs/make_method_pages.py

The prose is written by hand; what stands between the marks of a part comes from the method's
Config and from benchmarks/results, so that neither can be out of date.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lpss_cli import method

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
RESULTS = ROOT / "benchmarks" / "results"
Run = dict[str, Any]
#: what was run, the options it had, its runs, and the dense runs of the same budget
Row = tuple[str, Run, list[Run], list[Run]]
_RUN = re.compile(r"(?P<method>[\w-]+) at (?P<sparsity>[\d.]+), seed \d+, (?P<options>.*)")


def flags(name: str) -> str:
    """Return the table of a method's flags: default, range or choices, meaning."""
    lines = ["| flag | default | takes | what it is |", "|---|---|---|---|"]
    for field in dataclasses.fields(method.get(name).Config):
        default = "chosen" if field.default in (None, ()) else f"`{field.default}`"
        flag = "--" + field.name.replace("_", "-")
        text = str(field.metadata["help"]).replace("|", "\\|")
        lines.append(f"| `{flag}` | {default} | {_takes(field.metadata)} | {text} |")
    return "\n".join(lines)


def _takes(limits: Any) -> str:
    if limits["choices"]:
        return ", ".join(f"`{choice}`" for choice in limits["choices"])
    low, high = limits["low"], limits["high"]
    if low == -float("inf"):
        return ""
    return f"≥ {low:g}" if high == float("inf") else f"{low:g} to {high:g}"


def measured(name: str) -> str:
    """Return the rows of the two accuracy tables that this method has, dense beside them."""
    lines = [
        "| run | options | seeds | zeros | test accuracy, % | dense, same budget |",
        "|---|---|---|---|---|---|",
    ]
    for run, options, found, dense in chain(_compared(name), _tuned(name)):
        zeros = f"{found[0]['zeros']:,} of {found[0]['prunable']:,}" if name != "dense" else "-"
        chosen = ", ".join(f"{k} {_short(v)}" for k, v in options.items()) or "the defaults"
        cells = (run, chosen, len(found), zeros, _spread(found), _spread(dense))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _compared(name: str) -> Iterator[Row]:
    """Yield what `lpss compare` measured: all methods with the same grid of options."""
    runs = json.loads((RESULTS / "compare" / "results.json").read_text())["runs"]
    found: dict[tuple[str, str, str], list[Run]] = {}
    for key, run in runs.items():
        if match := _RUN.fullmatch(key):
            kind = match["method"], match["sparsity"], match["options"]
            found.setdefault(kind, []).append({**run, "accuracy": run["metric"]})
    dense = next(runs for (kind, _, _), runs in found.items() if kind == "dense")
    for (kind, sparsity, options), runs in found.items():
        if kind == name:
            share = f", {100 * float(sparsity):g} %" if name != "dense" else ""
            yield f"LeNet-300 MNIST, 12 epochs{share}", json.loads(options), runs, dense


def _tuned(name: str) -> Iterator[Row]:
    """Yield what benchmarks/accuracy.py measured: each case with options chosen for it."""
    rows = json.loads((RESULTS / "accuracy.json").read_text())
    dense = {
        key.removesuffix(", dense, dense"): row["runs"]
        for key, row in rows.items()
        if key.endswith(", dense, dense")
    }
    for key, row in rows.items():
        run, _, kind = key.rpartition(", ")
        budget = run.rpartition(", ")[0]
        if kind == name:
            yield run, row["options"], row["runs"], dense.get(budget, [])


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def _spread(runs: list[Run]) -> str:
    points = [100 * run["accuracy"] for run in runs]
    if not points:
        return "-"
    spread = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):.2f}{spread}"


def filled(name: str, page: str) -> str:
    """Return the page with its marked parts made anew."""
    for mark, part in (("flags", flags), ("measured", measured)):
        between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        page = between.sub(lambda m, part=part: f"{m[1]}{part(name)}\n{m[2]}", page)
    return page


def main() -> None:
    """Write every page whose marked parts have changed."""
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(filled(path.stem, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
