"""The record inside an artefact, checked once when it is read: nothing in it is trusted later.

What lpss writes about a run comes back from files that anybody may have made. Here it becomes
plain containers of bounded size, and every entry that the program looks at has its kind, see
:mod:`entries`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.checkpoints.entries import HISTOGRAMS, LONGEST_NAME, checked
from lpss_cli.errors import InputError
from lpss_cli.utils import digest
from lpss_cli.utils.arrays import Array, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


AGAIN = "take another copy, or make it again"
# A command line may have 2 MB.
_DEEPEST, _MOST, _LONGEST = 32, 1_000_000, 4_000_000


class NotPlainError(Exception):
    """The record is no plain container, or too large; the message says how."""


def verify(
    path: Path,
    found: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor] | Mapping[str, Array] | None],
    forms: Mapping[str, TensorSpec],
) -> tuple[dict[str, Any], list[str]]:
    """Verify a record's manifest, and keep the entries that are of their kind.

    Args:
        path: of the file, for messages.
        found: the record as it was found.
        parts: the tensors beside it, see :func:`manifest.digest`.
        forms: shape and kind of numbers of the network's.

    Returns:
        The record without its seal, and notes for people on what was ignored.

    Raises:
        InputError: it is no plain container, of a newer lpss, or not that of the tensors.
    """
    try:
        meta = plain(found)
    except NotPlainError as reason:
        raise InputError(f"{path} is damaged: its record {reason}", AGAIN) from None
    version, sealed = meta.get("format", 0), meta.get(digest.KEY)
    if type(version) is not int or not 0 <= version <= digest.FORMAT:
        raise InputError(
            f"{path} is of format {str(version)[:20]}, and this lpss reads up to {digest.FORMAT}",
            "update lpss, or make the file again",
        )
    expected = version == digest.FORMAT or sealed is not None
    if expected and sealed != digest.digest(meta, parts):
        raise InputError(f"{path} is damaged: it is not what was written", AGAIN)
    seal = ("format", digest.KEY)
    meta, wrong = checked({key: value for key, value in meta.items() if key not in seal})
    if not _fit(meta.get("weights") or {}, forms):
        wrong.append("weights")
        del meta["weights"]
    return meta, [f"{path}: its {name!r} is not as lpss writes it: ignored" for name in wrong]


#: What is of the training alone: it stays in the artefact when files for others are made of it.
_OF_TRAINING = ("history", HISTOGRAMS)


def exported(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what files of other formats hold of a record."""
    return {key: value for key, value in record.items() if key not in _OF_TRAINING}


def _fit(facts: Mapping[str, Any], state: Mapping[str, TensorSpec]) -> bool:
    """Whether facts about prunable weights are about weights that the file has."""
    return all(
        name in state
        and state[name].is_floating_point()
        and state[name].dim() >= 2
        and (fact.get("row_dim") or 0) < state[name].dim()
        for name, fact in facts.items()
    )


def plain(value: Any) -> Any:
    """Return a copy made of dict, list, str, int, float, bool and None alone.

    Raises:
        NotPlainError: it holds something else, goes too deep (or in circles), or is too large.
            Shared parts count every time, as they do in every text made of them.
    """
    return _copy(value, _DEEPEST, [_MOST])


def _copy(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth < 0 or left[0] < 0:
        raise NotPlainError("is too deep or too large")
    if isinstance(value, str):
        if len(value) > _LONGEST:
            raise NotPlainError(f"holds a text of {len(value):,} characters")
        return str(value)
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and abs(value) < 2**64:
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and len(key) <= LONGEST_NAME for key in value):
            raise NotPlainError("has names that are no texts")
        return {str(key): _copy(item, depth - 1, left) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, depth - 1, left) for item in value]
    raise NotPlainError(f"holds a {type(value).__name__}")
