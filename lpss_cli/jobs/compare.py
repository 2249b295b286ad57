"""Comparing methods at several sparsities and seeds, with the same network, data and budget.

Learning rate and weight decay of every method are chosen from the same small grid, on a held-out
part of the training data, at the middle one of the sparsities. While the best learning rate is at
an end of the grid, the grid grows there. Targets that are added to a folder later keep what was
chosen. The test split is measured once, on the final network at its exact target.

Every run has a process of its own, so that its peak memory can be measured. Results are saved in a
folder after every run, with the state of the current one beside them; an interrupted comparison
resumes there.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError, StoppedError
from lpss_cli.jobs.config import ComparisonOptions, Request, check
from lpss_cli.jobs.run_store import (
    RunStore,
    Target,
    canonical_target,
    run_label,
    shown_target,
    sparsity_of,
)
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training import method as methods
from lpss_cli.utils.files import atomic_write, reserve_output
from lpss_cli.utils.signals import SignalError, handle_signals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Factors on a method's own learning rate, and weight decays, that every method is tuned over.
FACTORS = (0.5, 1.0, 2.0)
DECAYS = (0.0, 5e-4)
# The grid grows up to this factor, and down to its inverse.
_MAX_FACTOR = 16.0
#: Fraction of the training data that options are chosen on.
HOLDOUT = 0.1
DENSE = methods.DENSE
_RESULTS = "results.json"
# Seed of the runs that choose options, none of those that are reported.
_TUNING_SEED = 1_000_003


@dataclass(frozen=True)
class Comparison(ComparisonOptions):
    """What to compare, checked; a dense run is always among the runs.

    Raises:
        InputError: an unknown method, a target out of range or named twice, no seed, or nothing to
            compare.
    """

    def __post_init__(self) -> None:
        """Check everything before any work; see the class."""
        for name in self.methods:
            methods.get(name)
        for target in self.sparsities:
            if check_sparsity(sparsity_of(target)) == 0:
                raise InputError("0 is not a target", f"the {DENSE} run is always made")
        for a, b in combinations(self.sparsities, 2):
            if canonical_target(a) == canonical_target(b):
                raise InputError(f"{a} and {b} are the same target", "leave one out")
        if not self.methods or not self.sparsities or self.seeds < 1:
            raise InputError(
                "there is nothing to compare", "name --methods, --sparsities and --seeds from 1 up"
            )

    def cells(self) -> Iterator[tuple[str, Target]]:
        """Yield every method with every target; dense once, with the target 0."""
        yield DENSE, 0.0
        for name in self.methods:
            if name != DENSE:
                yield from ((name, target) for target in self.sparsities)

    def runs(self) -> int:
        """Return the number of runs, with those of the grid as long as it does not grow."""
        cells = set(self.cells())
        tuning = sum(len(_grid(name)) for name in {name for name, _ in cells})
        return (tuning if self.tune else 0) + self.seeds * len(cells)


@dataclass(frozen=True)
class Study:
    """The results of a comparison, in its folder.

    Attributes:
        title: what was compared.
        rows: one per method and target; see :func:`compare`.
        results: file of all runs.
        picture: accuracy against sparsity.
    """

    title: str
    rows: list[dict[str, Any]]
    results: Path
    picture: Path

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"rows": self.rows, "picture": str(self.picture)}


def study(options: ComparisonOptions, request: Request, note: Callable[[str], None]) -> Study:
    """Compare methods and draw accuracy against sparsity; see :func:`compare`.

    Args:
        options: methods, sparsities, seeds, and the folder for the results and the picture.
        request: network, data and budget that all runs share.
        note: called after every run.

    Raises:
        InputError: see :func:`compare`.
        StoppedError: see :func:`compare`.
    """
    folder = options.out_dir
    rows = compare(Comparison(**vars(options)), request, folder, note)
    title = f"{request.arch or 'the default network'} on {request.data or 'digits'}"
    picture = folder / "accuracy.svg"
    accuracy_against_sparsity(rows, title, picture)
    return Study(title, rows, folder / _RESULTS, picture)


def compare(
    comparison: Comparison, request: Request, folder: Path, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Do the runs that are missing, and return one row per method and target.

    Args:
        comparison: methods, sparsities, seeds.
        request: network, data and budget that all runs share; its method, options, sparsity and
            seed are not used.
        folder: folder of ``results.json``; made if absent.
        note: called after every run.

    Returns:
        Rows with ``method``, ``target`` (as it was typed), ``sparsity``, ``options``, ``mean``,
        ``sd``, ``runs``, ….

    Raises:
        InputError: the folder holds another comparison, or an argument does not exist or fit.
        StoppedError: a signal came; finished runs are kept.
    """
    check(request)
    path = folder / _RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be a folder of results: {error.strerror}", "choose another --out-dir"
        ) from None
    with reserve_output(path, force=True, option="--out-dir"), handle_signals() as interrupts:
        interrupts.defer()
        store = RunStore(path, _identity(request), interrupts, note, comparison.runs())
        try:
            return _rows(comparison, request, store)
        except SignalError as error:
            number = error.number
            reason = f"interrupted by {signal.Signals(number).name}"
        except StoppedError as error:
            number, reason = error.signal, error.what
        raise StoppedError(
            f"{reason}; {_finished_text(store.finished, path)}",
            f"resume with: {request.command}",
            number,
        )


def _finished_text(finished: int, path: Path) -> str:
    """Describe what an interrupted comparison leaves behind."""
    if not finished:
        return "no run had finished"
    return f"{finished} finished run{'s are' if finished > 1 else ' is'} in {path}"


def _identity(request: Request) -> dict[str, Any]:
    """Return what all runs of a folder share."""
    keys = ("data", "arch", "epochs", "batch_size", "precision", "device")
    return {key: getattr(request, key) for key in keys} | {
        "skip": list(request.skip),
        "data_overrides": {k: str(v) for k, v in request.data_overrides.items() if k != "data_dir"},
    }


def _rows(comparison: Comparison, request: Request, store: RunStore) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    options_of: dict[str, dict[str, Any]] = {}
    for name, target in comparison.cells():
        if name not in options_of:
            tuned = _tuned_options(comparison, request, name, store) if comparison.tune else {}
            options_of[name] = tuned
        sparsity, options = sparsity_of(target), options_of[name]
        run = replace(request, method=name, options=options, sparsity=sparsity)
        runs = [
            store.get(run_label(name, target, seed, options), replace(run, seed=seed))
            for seed in range(comparison.seeds)
        ]
        cell = {
            "method": name,
            "target": shown_target(target),
            "sparsity": sparsity,
            "options": options,
        }
        rows.append(cell | _summary(runs))
    return rows


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a method's runs at one target."""
    succeeded = [run for run in runs if "failed" not in run]
    values = [run["metric"] for run in succeeded]

    def median(key: str) -> float | None:
        known = [run[key] for run in succeeded if run[key] is not None]
        return statistics.median(known) if known else None

    return {
        "metric": succeeded[0]["primary"] if succeeded else None,
        "mean": statistics.mean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "failed": len(runs) - len(succeeded),
        "zeros": succeeded[0]["zeros"] if succeeded else None,
        "prunable": succeeded[0]["prunable"] if succeeded else None,
        "hoyer": median("hoyer"),
        "seconds_per_epoch": median("seconds_per_epoch"),
        "peak_bytes": median("peak_bytes"),
        "runs": list(runs),
    }


# --- the choice of learning rate and weight decay ------------------------------------------------


def _tuned_options(
    comparison: Comparison, request: Request, name: str, store: RunStore
) -> dict[str, Any]:
    """Return the learning rate and weight decay that are best on the held-out part."""
    sparsities = sorted(map(sparsity_of, comparison.sparsities))
    tuning = replace(
        request,
        method=name,
        sparsity=0.0 if name == DENSE else sparsities[(len(sparsities) - 1) // 2],
        seed=_TUNING_SEED,
        holdout=HOLDOUT,
    )

    def score(options: dict[str, Any]) -> float:
        label = f"choosing {name}, {json.dumps(options)}"
        return float(store.get(label, replace(tuning, options=options)).get("score", -math.inf))

    # Factor → the best score with it, and the options of that score.
    tried: dict[float, tuple[float, dict[str, Any]]] = {}
    factors = list(_factors(name))
    while factors:
        for factor in factors:
            scores = [(score(options), options) for options in _options(name, factor)]
            tried[factor] = max(scores, key=itemgetter(0))  # the first of equal ones
        factors = _next_factors(tried)
        store.expect(sum(len(_options(name, factor)) for factor in factors))
    return max(tried.values(), key=itemgetter(0))[1]


def _next_factors(tried: Mapping[float, tuple[float, Any]]) -> list[float]:
    """Return the factor beyond the best one, if the best one is at an end of several."""
    best = max(tried, key=lambda factor: tried[factor][0])
    if len(tried) == 1 or tried[best][0] == -math.inf:
        return []
    if best == max(tried) and best < _MAX_FACTOR:
        return [2 * best]
    if best == min(tried) and best > 1 / _MAX_FACTOR:
        return [best / 2]
    return []


def _grid(name: str) -> list[dict[str, Any]]:
    """Return the options that a method is tried with before its grid grows."""
    return [options for factor in _factors(name) for options in _options(name, factor)]


def _factors(name: str) -> tuple[float, ...]:
    return (1.0,) if methods.get(name).Config().lr is None else FACTORS


def _options(name: str, factor: float) -> list[dict[str, Any]]:
    """Return the options with one learning rate; none if the method chooses them by itself."""
    config = methods.get(name).Config()
    rate = {} if config.lr is None else {"lr": config.lr * factor}
    decays = ({},) if config.weight_decay is None else ({"weight_decay": d} for d in DECAYS)
    return [rate | decay for decay in decays]


# --- the picture ---------------------------------------------------------------------------------

# Colors of Okabe and Ito, which color-blind people can tell apart; markers for gray print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*Xp"  # one more than colors: no two methods look the same
_LINES = ("-", ":", "-.")  # of the first, second and third method with the same color


def accuracy_against_sparsity(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw mean and standard deviation of every method over the compression ratio.

    Args:
        rows: rows of :func:`compare`; the dense run becomes a horizontal line.
        title: title of the picture.
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
    # Set explicitly: a single target has no width of which the margin could be a fraction.
    margin = 1.1 * (ratios[-1] / ratios[0]) ** 0.03
    axes.set_xlim(ratios[0] / margin, ratios[-1] * margin)
    _draw_curves(axes, known, scale)
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def tick(ratio: float) -> str:
    """Return the label of a compression ratio > 1, with the digits that tell it from 100 %."""
    zeros, digits = 100 - 100 / ratio, 4
    while float(f"{zeros:.{digits}g}") >= 100 and digits < 12:
        digits += 1
    return f"{zeros:.{digits}g} %\n{float(f'{ratio:.3g}'):,g}×"


def _draw_curves(axes: Axes, rows: Sequence[dict[str, Any]], scale: float) -> None:
    """Draw one curve per method, and dense runs, which have no sparsity, as lines."""
    names = list(dict.fromkeys(row["method"] for row in rows if row["sparsity"] > 0))
    for index, name in enumerate(names):
        points = sorted((r for r in rows if r["method"] == name), key=lambda r: r["sparsity"])
        axes.errorbar(
            [1 / (1 - r["sparsity"]) for r in points],
            [scale * r["mean"] for r in points],
            [scale * (r["sd"] or 0.0) for r in points],
            label=name,
            color=_COLORS[index % len(_COLORS)],
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_LINES[index // len(_COLORS) % len(_LINES)],
            capsize=3,
            linewidth=1.5,
        )
    for row in rows:
        if row["sparsity"] == 0:
            axes.axhline(scale * row["mean"], color="grey", linestyle="--", label=row["method"])
