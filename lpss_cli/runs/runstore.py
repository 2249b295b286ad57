"""The runs of a comparison on disk: results of the finished ones, the state of the present one.

Results are written after every run. A run has a process of its own, and its state lies in
``running/`` beside them until its result is there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpss_cli import apart
from lpss_cli.errors import InputError, RunError
from lpss_cli.files import replacing
from lpss_cli.interrupts import Interrupts, SignalledError
from lpss_cli.runs.generations import Generations
from lpss_cli.runs.measuring import measure
from lpss_cli.runs.request import Request


class RunStore:
    """Finished runs by their label, on disk after each, and the state of the present one.

    Args:
        path: where the results are.
        identity: what all runs share.
        interrupts: of this process; signals wait but while a run is waited for.
        note: told about every finished run.
        total: how many runs will be asked for, as far as the notes say so.

    Raises:
        InputError: there are results of something else.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        interrupts: Interrupts,
        note: Callable[[str], None],
        total: int = 0,
    ) -> None:
        self._path, self._interrupts, self._note = path, interrupts, note
        self._running = path.parent / "running"
        self._asked: dict[str, None] = {}
        self._total = total
        self._content: dict[str, Any] = {"of": identity, "runs": {}}
        if path.exists():
            try:
                self._content = json.loads(path.read_text())
                same = self._content["of"] == json.loads(json.dumps(identity))
                for label in self._content["runs"]:
                    self._clear(label)
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

    def get(self, label: str, request: Request) -> dict[str, Any]:
        """Return a run's result; run it first, or go on with it, if it is missing.

        Raises:
            StoppedError: a signal came while it ran.
            SignalledError: a signal came before or afterwards, or a second one.
        """
        runs: dict[str, dict[str, Any]] = self._content["runs"]
        self._asked[label] = None
        if label in runs:
            return runs[label]
        self._running.mkdir(exist_ok=True)
        out = self._out(label)
        if Generations(out).found:
            self._note(f"going on with {label}")
        try:
            runs[label], warnings = apart.call(self._interrupts, measure, replace(request, out=out))
        except RunError as error:
            raise RunError(f"{label}: {error.what}", error.do) from error
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1) + "\n")
        self._clear(label)
        for text in warnings:
            self._note(f"{label}: {text}")
        result = runs[label]
        which = f"run {len(self._asked)} of {self._total}: " if self._total else ""
        self._note(f"{which}{label}: " + (result.get("failed") or f"{result['metric']:.4f}"))
        if self._interrupts.pending is not None:
            raise SignalledError(self._interrupts.pending)
        return result

    def _out(self, label: str) -> Path:
        """Return where a run writes, and has its state beside; no label is a name of a file."""
        name = re.sub(r"[^\w.-]+", "-", label.partition(", {")[0])
        return self._running / f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:12]}.pt"

    def _clear(self, label: str) -> None:
        """Remove what a finished run has left."""
        out = self._out(label)
        Generations(out).remove()
        out.unlink(missing_ok=True)
        with suppress(OSError):  # there is more in it
            self._running.rmdir()
