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
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any

from lpss_cli import method as methods
from lpss_cli.errors import InputError, StoppedError
from lpss_cli.runs.labels import Target, label, run_of, same, shown, sparsity_of
from lpss_cli.runs.request import Request, check
from lpss_cli.runs.runstore import RunStore
from lpss_cli.targets import check_sparsity
from lpss_cli.utils.files import output
from lpss_cli.utils.signals import SignalledError, listening

#: Factors on a method's own learning rate, and decays, that every method is tried with.
FACTORS = (0.5, 1.0, 2.0)
DECAYS = (0.0, 5e-4)
# While the best factor is at an end, the one beyond it is tried, so far and no further.
_FURTHEST = 16.0
HOLDOUT = 0.1
DENSE = "dense"
# Seeds of the runs that choose options: others than those that are reported.
_CHOOSING_SEED = 1_000_003


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        methods: registered methods; a dense run is always among them.
        sparsities: targets in (0, 1).
        seeds: number of seeds, 0 up.
        tune: choose learning rate and decay on a held-out part first.
    """

    methods: tuple[str, ...]
    sparsities: tuple[Target, ...]
    seeds: int = 3
    tune: bool = True

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
            if same(one) == same(other):
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
    path = folder / "results.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be a folder of results: {error.strerror}", "choose another --out-dir"
        ) from None
    with output(path, force=True, option="--out-dir"), listening() as interrupts:
        interrupts.defer()
        store = RunStore(path, _identity(request), run_of, interrupts, note, what.runs())
        try:
            return _rows(what, request, store)
        except SignalledError as signalled:
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
            runs.append(store.get(label(name, target, seed, options), one))
        asked = {"method": name, "target": shown(target), "sparsity": sparsity, "options": options}
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
