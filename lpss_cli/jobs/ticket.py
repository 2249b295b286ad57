"""Tickets: the mask of a sparse network, trained again from an early or a simple start.

There are three starts: the initial weights of the network's training (lottery tickets, Frankle &
Carbin, arXiv:1803.03635; with the mask of any method, as in GSM, arXiv:1909.12778), two numbers per
layer (ASNI-II, arXiv:2202.09284), and new random weights. The mask stays fixed. A random mask with
the same counts per layer, trained the same way, shows what the mask is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.checkpoints.load_weights import load_into
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.checkpoints.training_state import TrainingStateFiles, paths_of
from lpss_cli.data import Data
from lpss_cli.errors import InputError
from lpss_cli.jobs import ternary_init
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request, TicketOptions, check, device_of
from lpss_cli.jobs.resolve import build, output_beside, restore, settings_for
from lpss_cli.jobs.training_job import Job, Outcome, outcome_of
from lpss_cli.models import ModelInfo
from lpss_cli.reporting.report import weights_of
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import make
from lpss_cli.training.options import TRAIN_BUDGET
from lpss_cli.utils.files import check_writable, reserve_output
from lpss_cli.utils.options import options


@dataclass(frozen=True)
class Ticket:
    """The result of a ticket.

    Attributes:
        start: a choice of ``TicketOptions.start``.
        source: metrics of the sparse network that the mask comes from.
        outcome: outcome of the retraining; its ``before`` are the metrics of the masked start.
        control: metrics of a random mask with the same counts per layer, trained the same way;
            None if it was not asked for.
        initial_file, initial_bytes: file of a start of two numbers per layer; None for others.
    """

    start: str
    source: dict[str, float]
    outcome: Outcome
    control: dict[str, float] | None
    initial_file: str | None = None
    initial_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(replace(self, outcome=None)), **self.outcome.to_dict()}  # type: ignore[arg-type]


def ticket(
    path: Path,
    request: Request,
    start: str = "rewind",
    *,
    control: bool = True,
    callback: JobCallback | None = None,
) -> Ticket:
    """Retrain the mask of a sparse checkpoint from a start, and compare it with a random mask.

    Args:
        path: the sparse checkpoint; ``rewind`` needs one made with ``--keep-init``.
        request: budget, options of the retraining (plain momentum SGD) and the artifact to write.
        start: a choice of ``TicketOptions.start``.
        control: whether to train the random mask, too.
        callback: watches the runs.

    Raises:
        InputError: the file is not sparse, does not hold its initial weights, or an argument does
            not fit.
        RunError: training diverged.
    """
    callback = callback or JobCallback()
    request = request.writing_to(output_beside(path, ".ticket.pt"))
    check(request)
    options(TicketOptions)["start"].check(start)
    method = make("dense", request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        callback.on_note(note)
    second = _control_output(request.output)
    # A ticket that was interrupted in its second training has its output already.
    halfway = request.resume and request.output.exists() and bool(TrainingStateFiles(second).found)
    begun = halfway or (request.resume and bool(TrainingStateFiles(request.output).found))
    held = (*paths_of(request.output), second, *paths_of(second))
    with reserve_output(request.output, *held, force=request.force or halfway):
        trained, info, data = restore(checkpoint, request, callback.on_note)
        weights, zeros, total = _sparse(checkpoint, trained)
        source = evaluate(trained, data.test, data.task, device=device_of(request.device))
        callback.on_note(f"{zeros:,} of {total:,} prunable weights are zero in {path}")
        settings = settings_for(request, data, zeros / total, TRAIN_BUDGET, keep_zeros=True)
        fresh = _untrained(info, data, start, request.seed)
        stored = _load_start(fresh, start, checkpoint, weights, info, request, begun)
        initial = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        # Without the record, whose metrics are not those of the start.
        anonymous = replace(checkpoint, meta={})
        job = Job(request, callback, info, data, method, settings, anonymous, {"ticket": start})
        outcome = _finished(request.output, checkpoint, start) if halfway else job.run(fresh)
        after = _train_control(job, fresh, initial, weights, second) if control else None
        file, size = (str(stored), stored.stat().st_size) if stored else (None, None)
        return Ticket(start, source, outcome, after, file, size)


def _sparse(checkpoint: Checkpoint, model: nn.Module) -> tuple[dict[str, Tensor], int, int]:
    """Return the weights whose zeros are the mask, the number of zeros, and that of all weights.

    Raises:
        InputError: there are no zeros.
    """
    parameters = _parameters(model)  # a record may also name buffers
    weights = {n: w.tensor for n, w in weights_of(checkpoint).items() if n in parameters}
    zeros = sum(int((w == 0).sum()) for w in weights.values())
    if zeros == 0:
        raise InputError(f"{checkpoint.path} is dense: it has no mask", "lpss sparsify it first")
    return weights, zeros, sum(w.numel() for w in weights.values())


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name → parameter; a tied parameter has both names."""
    return dict(model.named_parameters(remove_duplicate=False))


def _control_output(out: Path) -> Path:
    """Return the output of the random mask, removed once measured: ``ticket.pt.control``."""
    return Path(f"{out}.control")


def _finished(out: Path, checkpoint: Checkpoint, start: str) -> Outcome:
    """Return the outcome of the first training, if the second one was interrupted.

    Raises:
        InputError: the output is of another ticket.
    """
    outcome = outcome_of(out)
    source = outcome.report.meta.get("source") or {}
    if source.get("sha256") != checkpoint.sha256 or outcome.report.meta.get("ticket") != start:
        raise InputError(
            f"{out} is not a ticket of {checkpoint.path} from the start {start!r}",
            "leave --resume out to start from the beginning, or choose another --out",
        )
    return outcome


def _train_control(
    job: Job,
    model: nn.Module,
    initial: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    out: Path,
) -> dict[str, float]:
    """Train a random mask with the same counts from the same start; return its metrics."""
    model.load_state_dict(initial)
    job.callback.on_note("the same again with a random mask of the same counts")
    _shuffle(model, weights, job.request.seed)
    notes = {**job.notes, "control": True}
    # Only the epochs of the ticket itself are logged.
    request = replace(job.request, out=out, log=None, tensorboard=None, eval_every=0)
    after = replace(job, request=request, notes=notes).run(model).after
    out.unlink()
    return after


def _untrained(info: ModelInfo, data: Data, start: str, seed: int) -> nn.Module:
    # Another seed for random weights: the source may have started from this one.
    return build(info, data, seed + (start == "random"))


@torch.no_grad()
def _load_start(
    model: nn.Module,
    start: str,
    checkpoint: Checkpoint,
    weights: Mapping[str, Tensor],
    info: ModelInfo,
    request: Request,
    begun: bool,
) -> Path | None:
    """Give a new network the weights of the start, masked.

    Args:
        model: the network.
        start: a choice of ``TicketOptions.start``.
        checkpoint: the sparse checkpoint.
        weights: name → its prunable weight; the zeros are the mask.
        info: what is known about the network.
        request: the job.
        begun: whether an interrupted ticket is resumed, which has written its file already.

    Returns:
        The file of a start of two numbers per layer; None for other starts.

    Raises:
        InputError: the file cannot be written, or the checkpoint does not hold its initial weights.
    """
    if start == "centroids":
        path = request.output.with_suffix(".init.safetensors")
        if not (begun and path.exists()):
            check_writable(path, force=request.force)
            keys = ("arch", "input_shape", "outputs", "data", "preprocessing", "classes", "task")
            meta = {key: checkpoint.meta[key] for key in keys if key in checkpoint.meta}
            ternary_init.save(path, ternary_init.derive(weights, {"arch": info.arch, **meta}))
        ternary_init.load(path).apply(model)  # what is trained is what the file holds
        return path
    if start == "rewind":
        if checkpoint.init is None:
            raise InputError(
                f"{checkpoint.path} does not hold the initial weights of its training",
                "make it with --keep-init, or pass --init centroids or --init random",
            )
        load_into(model, replace(checkpoint, state_dict=checkpoint.init), info)
    parameters = _parameters(model)
    for name, weight in weights.items():
        parameter, kept = parameters[name], weight != 0
        parameter.mul_(kept)
        # A zero means a masked weight from now on, and some layers are initialized with zeros.
        parameter.masked_fill_(kept & (parameter == 0), torch.finfo(parameter.dtype).tiny)
    return None


@torch.no_grad()
def _shuffle(model: nn.Module, weights: Mapping[str, Tensor], seed: int) -> None:
    """Move the weights of every masked layer to random positions; values and counts stay."""
    generator = torch.Generator().manual_seed(seed)
    parameters = _parameters(model)
    for name in weights:
        flat = parameters[name].flatten()
        order = torch.randperm(flat.numel(), generator=generator)
        parameters[name].copy_(flat[order].view_as(parameters[name]))
