"""What of a job is written down.

Its identity goes beside an unfinished state, its record into the artefact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints import artifact
from lpss_cli.method import Method, options_of
from lpss_cli.state import RunState
from lpss_cli.utils import digest

if TYPE_CHECKING:
    from lpss_cli.runs.job import Job


def identity(job: Job) -> dict[str, Any]:
    """Return what decides the run's bits; where data lie and what reads them does not."""
    places = ("data_dir", "workers", "name")
    spec = {k: v for k, v in job.data.spec.to_dict().items() if k not in places}
    groups = {"": asdict(job.settings), "method.": asdict(job.method.config), "data.": spec}
    return {
        "lpss format": digest.FORMAT,
        "arch": job.arch,
        "method": job.method.name,
        "data": job.data.name,
        "data fingerprint": job.data.fingerprint,
        "source": job.source and job.source.sha256,
        **{f"notes.{k}": v for k, v in job.notes.items()},
        **{f"{group}{k}": v for group, vs in groups.items() for k, v in _plain(vs).items()},
    }


def record_of(job: Job, state: RunState) -> dict[str, Any]:
    """Return everything the finished run used, in plain containers; its metrics are not in it."""
    data, source = job.data, job.source
    return {
        "arch": job.arch,
        "input_shape": list(data.input_shape),
        "outputs": data.outputs,
        "task": data.task.name,
        "primary_metric": data.task.primary,
        "higher_is_better": data.task.higher_is_better,
        "data": data.spec.to_dict(),
        "data_name": data.name,
        "data_fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "preprocessing": data.preprocessing,
        "method": job.method.name,
        "config": _plain(_config(job.method)),
        "notes": state.notes,
        "settings": _plain(asdict(job.settings)),
        "sparsity": job.settings.sparsity,
        "weights": {
            name: {"row_dim": state.row_dims[name], **state.facts[name]} for name in state.weights
        },
        "history": state.history,
        "versions": artifact.versions(),
        "device": str(next(state.model.parameters()).device),
        "command": job.request.command,
        **job.notes,
        "source": source and {"file": source.path.name, "sha256": source.sha256},
    }


def _config(method: Method) -> dict[str, Any]:
    """Return the options of a method by name, as it has used them."""
    names = (field.name for field in options_of(type(method)))
    return {name: getattr(method.config, name) for name in names}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a record holds them: no tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
