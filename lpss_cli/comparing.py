"""Several methods at several sparsities and seeds: the same network, data and number of steps.

Learning rate and decay of every method are chosen by the same small grid on a held-out part of
the training data, at the middle one of the sparsities; the test split is measured once, on the
final network at its exact target. Every run has a process of its own, so that its peak memory is
its own. Results are kept in a folder after every run; a killed comparison goes on where it was.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lpss_cli import interrupts
from lpss_cli import method as methods
from lpss_cli.errors import InputError, StoppedError
from lpss_cli.files import replacing
from lpss_cli.measuring import measure
from lpss_cli.request import Request, check
from lpss_cli.targets import check_sparsity

#: Factors on a method's own learning rate, and decays, that every method is tried with.
FACTORS = (0.5, 1.0, 2.0)
DECAYS = (0.0, 5e-4)
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
    sparsities: tuple[float, ...]
    seeds: int = 3
    tune: bool = True

    def __post_init__(self) -> None:
        """Check everything before any work.

        Raises:
            InputError: an unknown method, a target out of range, no seed, nothing to compare.
        """
        for name in self.methods:
            methods.get(name)
        for sparsity in self.sparsities:
            if check_sparsity(sparsity) == 0:
                raise InputError("0 is no target", f"the {DENSE} run is made anyway")
        if not self.methods or not self.sparsities or self.seeds < 1:
            raise InputError(
                "there is nothing to compare", "name --methods, --sparsities and --seeds from 1 up"
            )

    def cells(self) -> Iterator[tuple[str, float]]:
        """Every method with every sparsity; dense once, without one."""
        yield DENSE, 0.0
        for name in self.methods:
            if name != DENSE:
                yield from ((name, sparsity) for sparsity in self.sparsities)


def compare(
    what: Comparison, request: Request, folder: Path, note: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run what is missing and return one row a method and sparsity.

    Args:
        what: methods, sparsities, seeds.
        request: network, data and budget that all runs share; its method, options, sparsity and
            seed are not used.
        folder: where ``results.json`` is kept; made if absent.
        note: told about every finished run.

    Returns:
        Rows with ``method``, ``sparsity``, ``options``, ``accuracy`` (mean), ``sd``, ``runs``, ….

    Raises:
        InputError: the folder holds another comparison, or something does not exist or fit.
        StoppedError: a signal came; finished runs are kept.
    """
    check(request)
    folder.mkdir(parents=True, exist_ok=True)
    store = _Store(folder / "results.json", _identity(request))
    with interrupts.listening():
        try:
            return _rows(what, request, store, note)
        except interrupts.SignalledError as signalled:
            raise StoppedError(
                f"interrupted by {signal.Signals(signalled.number).name}: "
                f"{store.finished} finished runs are in {store.path}",
                f"go on with: {request.command}",
                signalled.number,
            ) from None


def _rows(
    what: Comparison, request: Request, store: _Store, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    rows = []
    for name, sparsity in what.cells():
        options = _chosen(what, request, name, store, note) if what.tune else {}
        runs = []
        for seed in range(what.seeds):
            one = replace(request, method=name, options=options, sparsity=sparsity, seed=seed)
            label = f"{name} at {sparsity:.6g}, seed {seed}, {json.dumps(options)}"
            runs.append(store.get(label, one, note))
        rows.append(_row(name, sparsity, options, runs))
    return rows


def _chosen(
    what: Comparison, request: Request, name: str, store: _Store, note: Callable[[str], None]
) -> dict[str, Any]:
    """Return the learning rate and decay that were best on the held-out part."""
    config = methods.get(name).Config()
    middle = sorted(what.sparsities)[(len(what.sparsities) - 1) // 2]
    rates = [None] if config.lr is None else [config.lr * factor for factor in FACTORS]
    best: tuple[float, dict[str, Any]] = (-math.inf, {})
    for rate in rates:
        for decay in DECAYS if config.weight_decay is not None else (None,):
            options = {"lr": rate, "weight_decay": decay}
            options = {key: value for key, value in options.items() if value is not None}
            one = replace(
                request,
                method=name,
                options=options,
                sparsity=0.0 if name == DENSE else middle,
                seed=_CHOOSING_SEED,
                holdout=HOLDOUT,
            )
            found = store.get(f"choosing {name}, {json.dumps(options)}", one, note)
            score = found.get("score", -math.inf)
            if score > best[0]:
                best = score, options
    return best[1]


def _row(
    name: str, sparsity: float, options: dict[str, Any], runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    good = [run for run in runs if "failed" not in run]
    values = [run["metric"] for run in good]

    def middle(key: str) -> float | None:
        found = [run[key] for run in good if run[key] is not None]
        return statistics.median(found) if found else None

    return {
        "method": name,
        "sparsity": sparsity,
        "options": options,
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


class _Store:
    """Finished runs by their label, on disk after each."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._content: dict[str, Any] = {"of": identity, "runs": {}}
        if path.exists():
            try:
                self._content = json.loads(path.read_text())
                same = self._content["of"] == json.loads(json.dumps(identity))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} is no comparison: {error}", "give another --out-dir"
                ) from error
            if not same:
                raise InputError(
                    f"{path} is of another network, data or budget", "give another --out-dir"
                )

    @property
    def finished(self) -> int:
        """How many runs are on disk."""
        return len(self._content["runs"])

    def get(self, label: str, request: Request, note: Callable[[str], None]) -> dict[str, Any]:
        """Return a run's result; run it first if it is missing."""
        runs: dict[str, dict[str, Any]] = self._content["runs"]
        if label not in runs:
            # A fresh process: a peak of memory cannot be lowered again.
            spawn = multiprocessing.get_context("spawn")
            follow = interrupts.follow_parent
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=follow) as pool:
                runs[label] = _result(pool, request)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(self._content, indent=1) + "\n")
            result = runs[label]
            note(f"{label}: " + (result.get("failed") or f"{result['metric']:.4f}"))
        return runs[label]


def _result(pool: ProcessPoolExecutor, request: Request) -> dict[str, Any]:
    """Measure in the pool's process; whatever ends the wait for it ends that process too."""
    # Signals are left to this process, from the other one's birth on.
    with interrupts.blocked():
        future = pool.submit(measure, request)
    try:
        return future.result()
    except interrupts.SignalledError:
        interrupts.kill_children()
        raise


def _identity(request: Request) -> dict[str, Any]:
    """What all runs of a folder share."""
    keys = ("data", "arch", "epochs", "batch_size", "precision", "device")
    return {key: getattr(request, key) for key in keys} | {
        "skip": list(request.skip),
        "data_overrides": {k: str(v) for k, v in request.data_overrides.items() if k != "data_dir"},
    }
