"""How a checkpoint was trained, as far as a network can be trained like it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.errors import InputError
from lpss_cli.method import Method, get, make
from lpss_cli.runs import given
from lpss_cli.runs.resolving import TRAIN_BUDGET
from lpss_cli.starting import Settings

# A training again takes so many times the epochs of the final run, or of a usual one, at most.
_LONGEST_AGAIN = 4


@dataclass(frozen=True)
class Origin:
    """How a network that has not seen the held-out examples comes about.

    Attributes:
        method: of its training.
        settings: of its training; None: the input is one.
    """

    method: Method
    settings: Settings | None = None


def origin_of(checkpoint: Checkpoint, data: Data, held: Data, settings: Settings) -> Origin | None:
    """Find out how the input was trained, as far as a network can be trained like it again.

    Args:
        checkpoint: the input.
        data: of the final run.
        held: the same, with examples held out.
        settings: of the final run: a training again takes no more than some times its epochs.

    Returns:
        None where its record does not tell, or it went on from another network.
    """
    meta = checkpoint.meta
    own: Mapping[str, Any] = meta.get("settings") or {}
    if meta.get("data_fingerprint") == held.fingerprint:
        return Origin(make("dense"))
    if meta.get("data_fingerprint") != data.fingerprint or meta.get("source") or not own:
        return None
    try:
        # Of what a record says, these are taken; anything else in it is not asked for.
        known = given.check({key: own.get(key) for key in ("epochs", "batch_size", "seed")})
        name = str(meta.get("method"))
        # Older records hold what their method ignores, too.
        unwanted = get(name).ignores
        config = {
            k: v
            for k, v in (meta.get("config") or {}).items()
            if v is not None and k not in unwanted
        }
        method = make(name, given.check(config))
        least = min(known["epochs"], known["batch_size"])
    except (InputError, TypeError, KeyError):
        return None
    if least < 1:
        return None
    longest = _LONGEST_AGAIN * max(settings.epochs, TRAIN_BUDGET[0])
    known["epochs"] = min(known["epochs"], longest)
    return Origin(method, replace(settings, **known, keep_zeros=False, sparsity=0.0, distill=0.0))
