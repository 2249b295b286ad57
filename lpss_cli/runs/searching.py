"""The largest sparsity that keeps a network within a drop, found on a part of the training data.

Bisection between 50 % zeros and 128×, in the logarithm of the kept part, because that is what a
network feels. Every try goes on from the sparsest network that was good enough (a warm start), and
the test split is never looked at.

A network that has learned the held-out examples by heart looks better on them than it is, and what
sparse training makes it forget looks like a drop. So the search begins, and counts, from one of

- the input itself, where its record says that just these examples were held out in its training;
- for what ``lpss train`` made of these data, the same training again without these examples;
- else the input, trained on without new zeros by the method and as long as every try. It remembers
  some of what it has seen, and what is found is on the safe side.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from lpss_cli.checkpoints.fitting import load_into
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError, StoppedError
from lpss_cli.runs import trial
from lpss_cli.runs.bisection import Search, Try, bisect
from lpss_cli.runs.origins import Origin, origin_of
from lpss_cli.runs.request import Request
from lpss_cli.runs.warmstart import Walk, present_zeros
from lpss_cli.starting import Settings
from lpss_cli.utils import torch_utils
from lpss_cli.utils.signals import SignalledError, kill_children, listening

#: The range of the search, and the number of tries in it.
LOW, HIGH, TRIES = 0.5, 1 - 2**-7, 6
# The held-out part: a tenth, but in small data enough examples to tell half a point, up to a fifth.
_PART, _EXAMPLES, _LARGEST_PART = 0.1, 1000, 0.2
# A try trains for this part of the epochs of the final run.
_SHORTER = 0.5


def search(
    model: nn.Module,
    arch: str,
    data: Data,
    checkpoint: Checkpoint,
    request: Request,
    settings: Settings,
    note: Callable[[str], None],
) -> Search:
    """Find the largest sparsity whose drop is within ``request.target_drop``.

    Args:
        model: with the checkpoint's weights, which it has again at the end.
        arch: names it in messages.
        data: of the final run; with ``request.holdout`` its test part is the held-out one.
        checkpoint: where the weights come from.
        request: what was typed.
        settings: of the final run.
        note: told the cost beforehand, every try, and what was found.

    Raises:
        InputError: the range is empty, or the data cannot be held out.
        RunError: even the smallest sparsity drops more, or the reference diverged.
        StoppedError: a signal came.
    """
    held = data
    if request.holdout is None:
        part = min(_LARGEST_PART, max(_PART, _EXAMPLES / len(data.train)))
        held = data.holdout(part, request.seed)
    origin = origin_of(checkpoint, data, held, settings)
    shorter = replace(settings, epochs=math.ceil(_SHORTER * settings.epochs))
    walk = Walk(model, held, request, shorter, note)
    low, high = _range(model, settings)
    tries = TRIES if request.tries is None else request.tries
    _announce(walk, tries, origin, len(data.train), settings.epochs)
    flops = trial.flops(model, held, arch) * settings.batch_size
    try:
        with (
            listening(),
            torch_utils.limit_threads(request.threads or torch_utils.suitable_threads(flops)),
        ):
            walk.begin(origin, arch)
            _warn_of_noise(walk)
            curve = bisect(walk.measure, walk.accept, tries, low, high)
    except SignalledError as signalled:
        kill_children()
        raise StoppedError(
            f"interrupted by {signal.Signals(signalled.number).name} in the search for a sparsity: "
            "nothing was saved",
            f"start again with: {request.command}",
            signalled.number,
        ) from None
    found = _result(walk, curve)
    note(f"found {found.sparsity:.2%} zeros")
    load_into(model, checkpoint, arch)
    return found


def _range(model: nn.Module, settings: Settings) -> tuple[float, float]:
    present, total = present_zeros(model, settings)
    low, high = max(LOW, present), min(HIGH, 1 - 1 / total)
    if low >= high:
        raise InputError(
            f"{present:.2%} of the {total:,} prunable weights are zero already: nothing is left "
            f"to search up to {high:.2%}",
            "give --sparsity in place of --target-drop",
        )
    return low, high


def _announce(walk: Walk, tries: int, origin: Origin | None, examples: int, final: int) -> None:
    epochs, held = walk.settings.epochs, len(walk.data.test)
    first = epochs if origin is None else origin.settings.epochs if origin.settings else 0
    total = first + tries * epochs + final
    walk.note(
        f"search: {f'{first} epochs of dense training, ' if first else ''}at most {tries} tries of "
        f"{epochs} epochs on {len(walk.data.train):,} examples, measured on {held:,} held-out "
        f"ones; then {final} epochs on {examples:,}: {total} in all; --epochs and --tries change it"
    )


def _warn_of_noise(walk: Walk) -> None:
    """Say how well so many examples tell an accuracy, where that is worse than what is asked."""
    if walk.primary != "accuracy":
        return
    held, right = len(walk.data.test), min(max(walk.reference, 0.0), 1.0)
    # Of a fraction; an accuracy of 1 is known to one example at best.
    error = 100 * max(math.sqrt(right * (1 - right) / held), 1 / held)
    if error > walk.allowed:
        walk.note(
            f"{held:,} examples tell an accuracy to about {error:.2g} points (standard error): "
            "so small a drop may as well be chance"
        )


def _result(walk: Walk, curve: list[Try]) -> Search:
    kept = [one.sparsity for one in curve if one.kept]
    if not kept:
        first = curve[0]
        drop = "diverges" if first.drop is None else f"drops {first.drop:.2f} points"
        raise RunError(
            f"even {first.sparsity:.2%} zeros {drop}, and {walk.allowed:g} are allowed",
            "allow more, give more --epochs or another --method, or choose --sparsity yourself",
        )
    task = walk.data.task
    return Search(
        walk.allowed,
        task.primary,
        len(walk.data.test),
        walk.settings.epochs,
        walk.given,
        walk.reference,
        tuple(curve),
        max(kept),
    )
