"""Several methods at several sparsities and seeds: the same network, data and number of steps.

Learning rate and decay of every method are chosen by the same small grid on a held-out part of the
training data, at the middle one of the sparsities; the grid grows beyond a learning rate at its end
that is the best. Targets that are added to a folder later keep what was chosen. The test split is
measured once, on the final network at its exact target. Every run has a process of its own, so that
its peak memory is its own. Results are kept in a folder after every run, and the state of the
present one beside them; a killed comparison goes on where it was.
"""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError, StoppedError
from lpss_cli.jobs.config import ComparisonOptions, Request, check
from lpss_cli.jobs.run_store import RunStore
from lpss_cli.sparsity.targets import check_sparsity, parse_sparsity
from lpss_cli.training import method as methods
from lpss_cli.utils.files import atomic_write, reserve_output
from lpss_cli.utils.signals import SignalError, handle_signals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# MERGED: What the runs of a comparison are called: by their targets as they were typed.
# MERGED: A run keeps its name in the file of results. ``0.9``, ``90%`` and ``10x`` are the same
# MERGED: target, so
# MERGED: what was run under one name is found under another.
#: A fraction of zeros, or as people type it: ``"0.9"``, ``"90%"``, ``"60x"``.
Target = float | str
_TARGET = re.compile("(?<= at )[^,]+(?=, seed )")


def sparsity_of(target: Target) -> float:
    """Return a target as a fraction of zeros.

    Raises:
        InputError: it is no number.
    """
    return parse_sparsity(target, "--sparsities")


def shown_target(target: Target) -> str:
    """Return a target as it was typed."""
    return target if isinstance(target, str) else f"{target:.6g}"


def run_label(method: str, target: Target, seed: int, options: Mapping[str, Any]) -> str:
    """Return what a run is called."""
    return f"{method} at {shown_target(target)}, seed {seed}, {json.dumps(options)}"


def canonical_target(target: Target) -> str:
    """Return what ways to type a target have in common: six digits of the fraction."""
    return shown_target(sparsity_of(target))


def run_of(label: str) -> str:
    """Return what labels of the same run have in common.

    It is the label itself where the target is a fraction of up to six digits: older results name
    all runs so.
    """
    with suppress(InputError):
        return _TARGET.sub(lambda found: canonical_target(found[0]), label)
    return label


#: Factors on a method's own learning rate, and decays, that every method is tried with.
FACTORS = (0.5, 1.0, 2.0)
DECAYS = (0.0, 5e-4)
# While the best factor is at an end, the one beyond it is tried, so far and no further.
_FURTHEST = 16.0
HOLDOUT = 0.1
_RESULTS = "results.json"
DENSE = methods.DENSE
# Seeds of the runs that choose options: others than those that are reported.
_CHOOSING_SEED = 1_000_003


@dataclass(frozen=True)
class Comparison(ComparisonOptions):
    """What to compare, checked; a dense run is always among the runs."""

    def __post_init__(self) -> None:
        """Check everything before any work.

        Raises:
            InputError: an unknown method, a target out of range or named twice, no seed, nothing
                to compare.
        """
        for name in self.methods:
            methods.get(name)
        for target in self.sparsities:
            if check_sparsity(sparsity_of(target)) == 0:
                raise InputError("0 is no target", f"the {DENSE} run is made anyway")
        for one, other in combinations(self.sparsities, 2):
            if canonical_target(one) == canonical_target(other):
                raise InputError(f"{one} and {other} are the same target", "leave one out")
        if not self.methods or not self.sparsities or self.seeds < 1:
            raise InputError(
                "there is nothing to compare", "name --methods, --sparsities and --seeds from 1 up"
            )

    def cells(self) -> Iterator[tuple[str, Target]]:
        """Every method with every target; dense once, without one."""
        yield DENSE, 0.0
        for name in self.methods:
            if name != DENSE:
                yield from ((name, target) for target in self.sparsities)

    def runs(self) -> int:
        """Return how many runs that makes, those of the grid before it grows among them."""
        cells = set(self.cells())
        choosing = sum(len(_grid(name)) for name in {name for name, _ in cells})
        return (choosing if self.tune else 0) + self.seeds * len(cells)


@dataclass(frozen=True)
class Study:
    """The results of a comparison, in its folder.

    Attributes:
        title: What was compared.
        rows: One per method and target; see ``compare``.
        results: File of all runs.
        picture: Accuracy against sparsity.
    """

    title: str
    rows: list[dict[str, Any]]
    results: Path
    picture: Path

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"rows": self.rows, "picture": str(self.picture)}


def study(options: ComparisonOptions, request: Request, note: Callable[[str], None]) -> Study:
    """Compare methods and draw accuracy against sparsity; see ``compare``.

    Args:
        options: Methods, sparsities, seeds, and the folder for the results and the picture.
        request: Network, data and budget that all runs share.
        note: Told about every finished run.

    Raises:
        InputError: See ``compare``.
        StoppedError: See ``compare``.
    """
    folder = options.out_dir
    rows = compare(Comparison(**vars(options)), request, folder, note)
    title = f"{request.arch or 'the default network'} on {request.data or 'digits'}"
    picture = folder / "accuracy.svg"
    accuracy_against_sparsity(rows, title, picture)
    return Study(title, rows, folder / _RESULTS, picture)


def compare(
    what: Comparison, request: Request, folder: Path, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run what is missing and return one row a method and sparsity.

    Args:
        what: methods, sparsities, seeds.
        request: network, data and budget that all runs share; its method, options, sparsity and
            seed are not used.
        folder: where ``results.json`` is kept; made if absent.
        note: told about every finished run.

    Returns:
        Rows with ``method``, ``target`` (as it was typed), ``sparsity``, ``options``, ``mean``,
        ``sd``, ``runs``, ….

    Raises:
        InputError: the folder holds another comparison, or something does not exist or fit.
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
        store = RunStore(path, _identity(request), run_of, interrupts, note, what.runs())
        try:
            return _rows(what, request, store)
        except SignalError as signalled:
            said, number = _said(signalled.number), signalled.number
        except StoppedError as stopped:
            said, number = stopped.what, stopped.signal
        raise StoppedError(
            f"{said}; {_kept(store.finished, path)}",
            f"go on with: {request.command}",
            number,
        )


def _said(number: int) -> str:
    return f"interrupted by {signal.Signals(number).name}"


def _kept(finished: int, path: Path) -> str:
    """Say what a comparison that was stopped leaves behind."""
    if not finished:
        return "no run had finished"
    return f"{finished} finished run{'s are' if finished > 1 else ' is'} in {path}"


def _rows(what: Comparison, request: Request, store: RunStore) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    for name, target in what.cells():
        if name not in chosen:
            chosen[name] = _chosen(what, request, name, store) if what.tune else {}
        sparsity, options = sparsity_of(target), chosen[name]
        runs = []
        for seed in range(what.seeds):
            one = replace(request, method=name, options=options, sparsity=sparsity, seed=seed)
            runs.append(store.get(run_label(name, target, seed, options), one))
        asked = {
            "method": name,
            "target": shown_target(target),
            "sparsity": sparsity,
            "options": options,
        }
        rows.append(asked | _row(runs))
    return rows


def _chosen(what: Comparison, request: Request, name: str, store: RunStore) -> dict[str, Any]:
    """Return the learning rate and decay that were best on the held-out part."""
    middle = sorted(map(sparsity_of, what.sparsities))[(len(what.sparsities) - 1) // 2]
    shared = replace(
        request,
        method=name,
        sparsity=0.0 if name == DENSE else middle,
        seed=_CHOOSING_SEED,
        holdout=HOLDOUT,
    )

    def score(options: dict[str, Any]) -> float:
        one = replace(shared, options=options)
        found = store.get(f"choosing {name}, {json.dumps(options)}", one)
        return float(found.get("score", -math.inf))

    # By factor: the score and the options that were best with it.
    tried: dict[float, tuple[float, dict[str, Any]]] = {}
    wanted = list(_factors(name))
    while wanted:
        for factor in wanted:
            scores = [(score(options), options) for options in _options(name, factor)]
            tried[factor] = max(scores, key=itemgetter(0))  # the first of equal ones
        wanted = _beyond(tried)
        store.expect(sum(len(_options(name, factor)) for factor in wanted))
    return max(tried.values(), key=itemgetter(0))[1]


def _beyond(tried: Mapping[float, tuple[float, Any]]) -> list[float]:
    """Return the factor that lies beyond the best one, where that is at an end and not alone."""
    best = max(tried, key=lambda factor: tried[factor][0])
    if len(tried) == 1 or tried[best][0] == -math.inf:
        return []
    if best == max(tried) and best < _FURTHEST:
        return [2 * best]
    if best == min(tried) and best > 1 / _FURTHEST:
        return [best / 2]
    return []


def _grid(name: str) -> list[dict[str, Any]]:
    """Return the options that a method is tried with first, as far as it has them."""
    return [options for factor in _factors(name) for options in _options(name, factor)]


def _factors(name: str) -> tuple[float, ...]:
    return (1.0,) if methods.get(name).Config().lr is None else FACTORS


def _options(name: str, factor: float) -> list[dict[str, Any]]:
    """Return the options of one learning rate; a method that solves for them has none."""
    config = methods.get(name).Config()
    rate = {} if config.lr is None else {"lr": config.lr * factor}
    decays = ({},) if config.weight_decay is None else ({"weight_decay": d} for d in DECAYS)
    return [rate | decay for decay in decays]


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the runs of a method at a target came to."""
    good = [run for run in runs if "failed" not in run]
    values = [run["metric"] for run in good]

    def middle(key: str) -> float | None:
        found = [run[key] for run in good if run[key] is not None]
        return statistics.median(found) if found else None

    return {
        "metric": good[0]["primary"] if good else None,
        "mean": statistics.mean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "failed": len(runs) - len(good),
        "zeros": good[0]["zeros"] if good else None,
        "prunable": good[0]["prunable"] if good else None,
        "hoyer": middle("hoyer"),
        "seconds_per_epoch": middle("seconds_per_epoch"),
        "peak_bytes": middle("peak_bytes"),
        "runs": list(runs),
    }


def _identity(request: Request) -> dict[str, Any]:
    """What all runs of a folder share."""
    keys = ("data", "arch", "epochs", "batch_size", "precision", "device")
    return {key: getattr(request, key) for key in keys} | {
        "skip": list(request.skip),
        "data_overrides": {k: str(v) for k, v in request.data_overrides.items() if k != "data_dir"},
    }


# MERGED: Pictures of comparisons.
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
    with atomic_write(path) as temporary:
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
