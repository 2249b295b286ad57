"""Fill in the tables that documents take from the code and from benchmarks/results.

    python docs/make_tables.py

The prose is written by hand. The table in benchmarks/results/NAME.md goes between the marks
``<!-- NAME.md -->`` and ``<!-- /NAME.md -->``, its second table between marks with ``NAME.md 2``,
and the comparison of methods between the marks ``compare``. The pages in docs/methods have marks
for the flags of a method and for its measured rows, docs/options.md those for the options of a
panel of the help, or of one command.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lpss_cli.cli.app import app
from lpss_cli.jobs import config
from lpss_cli.sparsity.targets import parse_sparsity
from lpss_cli.training import method
from lpss_cli.utils.options import Option

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from tables import options_text, spread  # noqa: E402  # beside this folder, not in a package

PAGES = ROOT / "docs" / "methods"
OPTIONS = ROOT / "docs" / "options.md"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RESULTS = ROOT / "benchmarks" / "results"
Run = dict[str, Any]
#: The name of a case, its options, its runs, and the dense runs with the same budget.
Row = tuple[str, Run, list[Run], list[Run]]
#: Defaults that stand for something else: a value that the method chooses, and an empty list.
_UNSET = {None: "auto", (): "not set"}
_RUN = re.compile(r"(?P<method>[\w-]+) at (?P<sparsity>[^,]+), seed \d+, (?P<options>.*)")


def flags(name: str) -> str:
    """Return the table of a method's flags: default, range or choices, description."""
    lines = ["| flag | default | values | description |", "|---|---|---|---|"]
    for item in method.options_of(method.get(name)):
        default = _UNSET.get(item.default, f"`{item.default}`")
        lines.append(f"| `{item.flag}` | {default} | {_values(item)} | {_cell(item.help)} |")
    return "\n".join(lines)


def options(title: str) -> str:
    """Return a table of options: those in a panel of the help, or those of one command alone.

    Args:
        title: name of the panel, or ``lpss`` and the command.
    """
    lines = ["| option | recipe | default | values | description |", "|---|---|---|---|---|"]
    found: dict[str, tuple[Option, list[str]]] = {}
    for command, item in _declared():
        if item.group == title or (not item.group and f"lpss {command}" == title):
            found.setdefault(item.key, (item, []))[1].append(command)
    for item, commands in found.values():
        key = f"`{item.key}`" if item.key in config.recipe_options() else ""
        off = item.flag.replace("--", "--no-", 1) if item.default is True else ""
        names = ", ".join(f"`{flag}`" for flag in (item.flag, off, item.short) if flag)
        told = _cell(_defaults(item, commands))
        lines.append(f"| {names} | {key} | {told} | {_values(item)} | {_cell(item.help)} |")
    return "\n".join(lines)


def panels() -> tuple[str, ...]:
    """Return the titles of all tables of options."""
    return tuple(dict.fromkeys(item.group or f"lpss {command}" for command, item in _declared()))


def _declared() -> Iterator[tuple[str, Option]]:
    """Yield each command with each of its options, except those of methods."""
    for info in app.registered_commands:
        command = info.name or info.callback.__name__
        for item in info.callback.shown.declared.values():
            if item.key not in method.all_options():
                yield command, item


def _defaults(item: Option, commands: list[str]) -> str:
    """Return the default of an option, with the commands that have another one."""
    told: dict[str, list[str]] = {}
    for command in commands:
        told.setdefault(item.default_for(command), []).append(command)
    common = max(told, key=lambda text: len(told[text]))
    others = [f"for {', '.join(told[text])}: {text}" for text in told if text != common]
    return "; ".join([common, *others])


def _values(item: Option) -> str:
    """Return the choices or the closed range of an option; empty if neither limits it."""
    if item.choices:
        return ", ".join(f"`{choice}`" for choice in item.choices)
    if not item.range_text:
        return ""
    if item.high == float("inf"):
        return f"≥ {item.low:g}"
    return f"{item.low:g} to {item.high_text or f'{item.high:g}'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def measured(name: str) -> str:
    """Return a method's rows of the two accuracy tables, each with its dense accuracy."""
    lines = [
        "| run | options | seeds | zeros | test accuracy, % | dense, same budget |",
        "|---|---|---|---|---|---|",
    ]
    for run, options, found, dense in chain(_compared(name), _tuned(name)):
        zeros = f"{found[0]['zeros']:,} of {found[0]['prunable']:,}" if name != "dense" else "-"
        chosen = _chosen(options) or "the defaults"
        cells = (run, chosen, len(found), zeros, _spread(found), _spread(dense))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _comparison() -> dict[tuple[str, str, str], list[Run]]:
    """Return the runs measured by `lpss compare`, by method, sparsity, and options."""
    runs = json.loads((RESULTS / "compare" / "results.json").read_text())["runs"]
    found: dict[tuple[str, str, str], list[Run]] = {}
    for key, run in runs.items():
        if match := _RUN.fullmatch(key):
            kind = match["method"], match["sparsity"], match["options"]
            found.setdefault(kind, []).append({**run, "accuracy": run["metric"]})
    return found


def compared() -> str:
    """Return the comparison, one row per method, the best at the largest sparsity first."""
    cells: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for (kind, sparsity, options), runs in _comparison().items():
        if kind != "dense":
            cells.setdefault((kind, options), {})[sparsity] = runs
    sparsities = list(next(iter(cells.values())))
    best = {s: max(_mean(row[s]) for row in cells.values()) for s in sparsities}
    shares = " | ".join(f"{100 * parse_sparsity(s):.4g} % zeros" for s in sparsities)
    lines = [
        f"| method | options chosen on held-out data | {shares} |",
        "|---|---|" + len(sparsities) * "---|",
    ]
    for (kind, options), row in sorted(
        cells.items(), key=lambda item: -_mean(item[1][sparsities[-1]])
    ):
        marks = {s: "**" if _mean(row[s]) == best[s] else "" for s in sparsities}
        figures = " | ".join(f"{marks[s]}{_spread(row[s])}{marks[s]}" for s in sparsities)
        lines.append(f"| {kind} | {_chosen(json.loads(options)) or 'its own'} | {figures} |")
    return "\n".join(lines)


def _compared(name: str) -> Iterator[Row]:
    """Yield a method's rows of the comparison; all methods had the same grid of options."""
    found = _comparison()
    dense = next(runs for (kind, _, _), runs in found.items() if kind == "dense")
    for (kind, sparsity, options), runs in found.items():
        if kind == name:
            share = f", {100 * float(sparsity):g} %" if name != "dense" else ""
            yield f"LeNet-300 MNIST, 12 epochs{share}", json.loads(options), runs, dense


def _tuned(name: str) -> Iterator[Row]:
    """Yield a method's rows of benchmarks/accuracy.py; every case has options of its own."""
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


def _chosen(options: Run) -> str:
    return options_text({k: f"{v:g}" if isinstance(v, float) else v for k, v in options.items()})


def _mean(runs: list[Run]) -> float:
    return statistics.mean(run["accuracy"] for run in runs)


def _spread(runs: list[Run]) -> str:
    return spread([100 * run["accuracy"] for run in runs])


def copied(name: str, which: int) -> str:
    """Return one of the tables in benchmarks/results/NAME.md."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return str(tables[which - 1]).rstrip("\n")


def filled(path: Path) -> str:
    """Return the text of a document with its marked parts regenerated."""
    page = path.read_text(encoding="utf-8")
    parts: dict[str, Callable[[], str]] = {
        mark: partial(copied, name, int(which or 1))
        for mark, name, which in re.findall(r"<!-- ((\w+\.md)(?: (\d))?) -->", page)
    }
    parts["compare"] = compared
    if path == OPTIONS:
        parts |= {title: partial(options, title) for title in panels()}
    if path.parent == PAGES:
        parts |= {"flags": partial(flags, path.stem), "measured": partial(measured, path.stem)}
    for mark, part in parts.items():
        between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
        page = between.sub(lambda m, part=part: f"{m[1]}{part()}\n{m[2]}", page)
    return page


def main() -> None:
    """Regenerate the marked parts of every document."""
    for path in DOCUMENTS:
        path.write_text(filled(path), encoding="utf-8")


if __name__ == "__main__":
    main()
