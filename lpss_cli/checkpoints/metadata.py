"""The record inside an artefact, checked once when it is read: nothing in it is trusted later.

What lpss writes about a run comes back from files that anybody may have made. Here it becomes
plain containers of bounded size, and every entry that the program looks at has its kind, see
:mod:`entries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError
from lpss_cli.sparsity import layer_info
from lpss_cli.utils import digest
from lpss_cli.utils.arrays import Array, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

# MERGED: The entries of a record that the program looks at, and what each of them has to be.
#: Names of networks, data sets and files; the longest list of MLP widths that makes sense.
LONGEST_NAME = 1000


def checked(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a record without the entries that are not of their kind, and the names of those.

    Args:
        record: plain containers, see :func:`record.plain`. Entries without a known kind stay.
    """
    wrong = [key for key, fits in _KINDS.items() if record.get(key) is not None
             and not fits(record[key])]  # fmt: skip
    return {key: value for key, value in record.items() if key not in wrong}, wrong


def _name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _metrics(value: Any) -> bool:
    """``{"on": text, "before": None or name → number, …}``."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("on", ""), str)
        and all(
            part is None or (isinstance(part, dict) and all(map(_number, part.values())))
            for key, part in value.items()
            if key != "on"
        )
    )


def _history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(epoch, dict) and all(item is None or _number(item) for item in epoch.values())
        for epoch in value
    )


def _versions(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _settings(value: Any) -> bool:
    """Options of the training; of these a report walks through the targets of layers."""
    return isinstance(value, dict) and (value.get("layers") is None or _texts(value["layers"]))


def _weights(value: Any) -> bool:
    """Name → what was noted about a layer, some of which goes into formulas."""
    return isinstance(value, dict) and all(
        isinstance(fact, dict)
        and (fact.get("row_dim") is None or _count(fact["row_dim"]))
        and layer_info.is_valid(fact)
        for fact in value.values()
    )


def _search(value: Any) -> bool:
    """What ``searching.Search.to_dict`` writes, as far as a report shows it."""
    if not isinstance(value, dict) or not isinstance(value.get("curve"), list):
        return False
    shown = isinstance(value.get("primary"), str) and _count(value.get("examples"))
    return (
        shown
        and all(_number(value.get(key)) for key in ("allowed", "reference", "sparsity"))
        and all(
            isinstance(one, dict)
            and _number(one.get("sparsity"))
            and "metric" in one
            and (one["metric"] is None or _number(one["metric"]))
            for one in value["curve"]
        )
    )


#: The entry of an artefact's record.
HISTOGRAMS = "histograms"

_NEAR, _FAR = {"low", "high", "counts"}, {"outside", "ends"}

_MOST_BINS = 1000

# What is counted is float32; the distance of larger ends may be no number.
_LARGEST = float.fromhex("0x1.fffffep127")


def is_histograms(value: Any) -> bool:
    """Whether an entry of unknown origin is one that ``of_model`` makes."""
    return isinstance(value, dict) and all(map(_is_histogram, value.values()))


def _is_histogram(one: Any) -> bool:
    if not isinstance(one, dict) or set(one) not in (_NEAR, _NEAR | _FAR):
        return False
    low, high, counts = one["low"], one["high"], one["counts"]
    whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    fits = _rising([low, high]) and whole and len(counts) <= _MOST_BINS and any(counts)
    if not fits or "ends" not in one:
        return fits
    ends, outside = one["ends"], one["outside"]
    return _rising(ends, low, high) and type(outside) is int and outside > 0


def _rising(ends: Any, *between: float) -> bool:
    """Whether these are two numbers of float32's range, and others lie between, all in order."""
    if not isinstance(ends, list) or len(ends) != 2:
        return False
    finite = all(type(end) in (int, float) and abs(end) <= _LARGEST for end in ends)
    numbers = [ends[0], *between, ends[1]]
    return finite and numbers == sorted(numbers)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "arch": _name,
    "input_shape": lambda value: isinstance(value, list) and all(map(_count, value)),
    "outputs": _count,
    "task": _name,
    "primary_metric": _name,
    "higher_is_better": lambda value: isinstance(value, bool),
    "data": lambda value: isinstance(value, dict) and _path(value.get("name", "")),
    "data_name": _path,
    "data_fingerprint": _name,
    "classes": _texts,
    "preprocessing": _mapping,
    "method": _name,
    "config": _mapping,
    "notes": _texts,
    "settings": _settings,
    "sparsity": _number,
    "weights": _weights,
    "history": _history,
    HISTOGRAMS: is_histograms,
    "versions": _versions,
    "device": _name,
    "command": lambda value: isinstance(value, str),
    "ticket": _name,
    "source": _mapping,
    "search": _search,
    "metrics": _metrics,
    "seconds": _number,
}


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
    version, sealed = meta.get("format", 0), meta.get(digest.MANIFEST_KEY)
    if type(version) is not int or not 0 <= version <= digest.RECORD_FORMAT:
        raise InputError(
            f"{path} is of format {str(version)[:20]}, and this lpss reads up to "
            f"{digest.RECORD_FORMAT}",
            "update lpss, or make the file again",
        )
    expected = version == digest.RECORD_FORMAT or sealed is not None
    if expected and sealed != digest.record_digest(meta, parts):
        raise InputError(f"{path} is damaged: it is not what was written", AGAIN)
    seal = ("format", digest.MANIFEST_KEY)
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
