"""Resuming an interrupted run: when its state is saved, and which run may continue it.

A saved state holds the run's *identity*, which is everything that decides its bits, so that a run
is never continued as another one; its *circumstances*, which may change the bits, too, and cause a
warning; the state itself; and what was measured on the way.
"""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.training_state import TrainingStateFiles
from lpss_cli.distributed.context import DistributedContext, LostError
from lpss_cli.errors import InputError, StoppedError, one_line
from lpss_cli.optim import native
from lpss_cli.training import method as methods
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.run import Run
from lpss_cli.utils.signals import Interrupts

#: Minimum number of seconds between two saves, which happen at ends of epochs.
SAVE_EVERY = 30.0
_DO = "give the options of the interrupted run, or leave --resume out to start from the beginning"
# Longest text of a value in a message.
_MAX_CHARACTERS = 80


class StateError(InputError):
    """The state of an interrupted run cannot be continued."""


@dataclass
class Record:
    """What is saved with the state of a run.

    Attributes:
        identity: everything that decides the bits of the run, as plain containers.
        circumstances: what else may change them: versions, threads, device.
        measured: what was measured on the way and cannot be measured again.
    """

    identity: Mapping[str, Any]
    circumstances: Mapping[str, str]
    measured: dict[str, Any] = field(default_factory=dict)


def circumstances(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Return what may change the bits of a run beside its options: versions, threads, processors.

    With a compiler, LpSGD's step is compiled, which rounds differently.

    Args:
        device: device to train on.
        processes: number of processes of the run.
    """
    return {
        **artifact.versions(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compiler": native.compiler() or "none",
        "processes": str(processes),
    }


def find(
    saved: TrainingStateFiles,
    record: Record,
    wanted: bool,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> dict[str, Any] | None:
    """Return the state to resume from; None: start from the beginning.

    Args:
        saved: files in which an interrupted run has left its state.
        record: record of the run; receives what the interrupted run had measured.
        wanted: whether an interrupted run is to be resumed.
        note: called with what is done.
        warn: called with what may change the result.

    Raises:
        StateError: every saved state is damaged, or it is of another run.
    """
    if not wanted:
        for path in saved.found[:1]:
            note(f"{path} is of an interrupted run: --resume would continue it")
        return None
    if not saved.found:
        note(f"there is no {saved.newest}: starting from the beginning")
        return None
    try:
        path, content = saved.read(warn)
    except InputError as error:
        raise StateError(error.what, error.do) from error
    try:
        differences = _differences(_with_present_names(content["identity"]), record.identity)
        changes = _differences(content["circumstances"], record.circumstances)
        state, measured = dict(content["state"]), dict(content["measured"])
        finished = f"{state['step']:,} steps, {state['epoch']:,} epochs"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path} cannot be read: {one_line(error)}", _DO) from None
    if differences:
        raise StateError(f"{path} is of another run: {'; '.join(differences)}", _DO)
    if changes:
        warn(f"{path}: {'; '.join(changes)}; so the result will not be the same to the last bit")
    record.measured.update(measured)
    note(f"resuming from {path}, after {finished}")
    return state


def _with_present_names(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved identity with the present names of the options of methods."""
    prefix, aliases = "method.", methods.aliases()
    return {
        prefix + aliases.get(name[len(prefix) :], name[len(prefix) :])
        if name.startswith(prefix)
        else name: value
        for name, value in identity.items()
    }


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe every entry in which two mappings differ."""

    def shown(values: Mapping[str, Any], name: str) -> str:
        text = repr(values[name]) if name in values else "not given"
        return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"

    return [
        f"{name} was {shown(then, name)} and is {shown(now, name)} now"
        for name in {**now, **then}
        if name not in then or name not in now or then[name] != now[name]
    ]


def resume_command(command: str) -> str:
    """Return a command line with ``--resume`` in it."""
    words = shlex.split(command)
    if "--resume" not in words:
        # Words after a bare -- are not options.
        words.insert(words.index("--") if "--" in words else len(words), "--resume")
    return shlex.join(words)


class TrainingCheckpointer(Callback):
    """Saves a run after its epochs, every so many steps, and when a signal stops it.

    Args:
        saved: the files to save to.
        record: saved with the state.
        interrupts: checked after every step.
        warn: called if a state could not be saved.
        every: steps between two saves; None: only after epochs.
        command: the run's command line.
        distributed: the processes of the run; the first one writes.
    """

    def __init__(
        self,
        saved: TrainingStateFiles,
        record: Record,
        interrupts: Interrupts,
        warn: Callable[[str], None],
        *,
        every: int | None = None,
        command: str = "",
        distributed: DistributedContext | None = None,
    ) -> None:
        self._saved, self._record, self._interrupts = saved, record, interrupts
        self._warn, self._every, self._command = warn, every, command
        self._distributed = distributed or DistributedContext()
        self._kept = saved.kept
        self._started = False
        self._last_save = time.monotonic()

    def on_start(self, run: Run) -> None:
        """Let a signal wait from now on: there is something to save."""
        self._started = True
        self._kept = self._distributed.run_on_main(lambda: self._saved.kept)
        self._interrupts.defer()

    def on_step(self, run: Run) -> None:
        """Stop if a signal has come, and save if it is time."""
        # A signal reaches the processes in different steps; they stop after the same one.
        pending = self._distributed.all_reduce_max(self._interrupts.pending or 0)
        if pending:
            self.stop(run, pending)
        if self._every and run.step % self._every == 0 and run.step < run.total_steps:
            self._save(run)

    def on_epoch(self, run: Run) -> None:
        """Save if it is time; after the last epoch the artifact follows."""
        is_due = self._distributed.run_on_main(
            lambda: time.monotonic() - self._last_save >= SAVE_EVERY
        )
        if is_due and run.step < run.total_steps:
            self._save(run)

    def stop(self, run: Run, number: int) -> NoReturn:
        """Save the run between two steps, and end it.

        Raises:
            StoppedError: always; it says how to resume.
            RunError: the loss is not finite.
        """
        where = f"after step {run.step:,} of {run.total_steps:,}"
        if self._save(run):
            where += f": its state is in {self._saved.newest}"
        raise self._stopped(number, where)

    def stopped_at_once(self, number: int) -> StoppedError:
        """Return the error for a signal after which nothing was saved."""
        where = "a second time, at once" if self._started else "before the first step"
        return self._stopped(number, where)

    def lost(self, error: LostError) -> LostError:
        """Return the error for a run that has lost one of its processes."""
        return LostError(error.what, self._remedy())

    def _stopped(self, number: int, where: str) -> StoppedError:
        """Return the error that says which signal came, and how to resume."""
        what = f"interrupted by {signal.Signals(number).name} {where}"
        return StoppedError(what, self._remedy(), number)

    def _remedy(self) -> str:
        if self._kept is None:
            return "nothing was saved"
        return f"resume with: {resume_command(self._command)}"

    def _save(self, run: Run) -> bool:
        """Save, and return whether that worked: a full disk is no reason to stop a good run."""
        run.check_loss()
        state = run.state_dict()
        failure, self._kept = self._distributed.run_on_main(lambda: self._write(state))
        if failure is not None:
            self._warn(f"{self._saved.newest} could not be saved: {failure}")
        self._last_save = time.monotonic()
        return failure is None

    def _write(self, state: Mapping[str, Any]) -> tuple[str | None, Path | None]:
        """Write a state; return what went wrong, if anything did, and the newest sound state."""
        failure = None
        try:
            self._saved.write(
                {
                    "identity": dict(self._record.identity),
                    "circumstances": dict(self._record.circumstances),
                    "measured": self._record.measured,
                    "state": state,
                }
            )
        except (OSError, RuntimeError, InputError) as error:
            failure = error.what if isinstance(error, InputError) else one_line(error)
        # Known here before the other processes are told: they may be lost by then.
        self._kept = self._saved.kept
        return failure, self._kept
