"""What the benchmarks share: numbers in NAME.json, and a table laid out of them in NAME.md.

What was measured is kept after every run. So a killed benchmark goes on where it was, and two that
measure different rows may run at the same time.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lpss_cli.utils.files import atomic_write

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Results:
    """The rows of one benchmark.

    Attributes:
        path: of the JSON file; the Markdown lies beside it.
        head: first line of the Markdown, with the command.
        layout: rows by name → the rest of the Markdown; None writes numbers alone.
    """

    path: Path
    head: str = ""
    layout: Callable[[dict[str, Any]], str] | None = None

    def read(self) -> dict[str, Any]:
        """Return the rows by name."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """Give the rows to be changed, read anew, and write them: nobody else does meanwhile."""
        with FileLock(self.path.with_suffix(".lock")):
            rows = self.read()
            yield rows
            text = None if self.layout is None else self.layout(rows)
            write(self.path, rows, self.head, text)

    def put(self, name: str, row: Any) -> None:
        """Write one row; those of others stay."""
        with self.changed() as rows:
            rows[name] = row

    def fill(
        self, name: str, seeds: Iterable[int], measure: Callable[[int], Any], **facts: Any
    ) -> None:
        """Measure the seeds that a row lacks, and write and print each.

        Args:
            name: of the row, a list with a run for each seed.
            seeds: from 0 up.
            measure: seed → what is kept of its run.
            facts: of the row; with them it is a dict whose ``runs`` are the list.
        """
        for seed in seeds:
            if len(_runs(self.read().get(name, []))) > seed:
                continue
            run = measure(seed)
            with self.changed() as rows:
                _runs(rows.setdefault(name, {**facts, "runs": []} if facts else [])).append(run)
            print(name, seed, run, flush=True)


def _runs(row: Any) -> list[Any]:
    return row["runs"] if isinstance(row, dict) else row


def write(path: Path, numbers: Any, head: str = "", text: str | None = None) -> None:
    """Write numbers as JSON, and beside them a text as Markdown, each in one piece."""
    contents = {path: json.dumps(numbers, indent=1) + "\n"}
    if text is not None:
        contents[path.with_suffix(".md")] = f"{head}\n\n{text}\n"
    for target, content in contents.items():
        with atomic_write(target) as temporary:
            temporary.write_text(content)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows of cells out as a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def spread(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    """Mean ± standard deviation; the mean alone of one value, a dash for none."""
    if not values:
        return "-"
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{more}"


def options_text(options: dict[str, Any]) -> str:
    """Options as people write them: names and values, by comma."""
    return ", ".join(
        f"{name} {value if isinstance(value, int | float | str) else ' '.join(value)}"
        for name, value in options.items()
    )
