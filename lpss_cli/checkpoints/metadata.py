"""The record inside an artifact, checked once when it is read and trusted from then on.

What lpss writes about a run comes back from files that anybody may have made. :func:`verify` turns
it into plain containers of bounded size, compares its digest, and drops every entry that the
program uses and that is not as lpss writes it.
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

#: The entry with histograms of the weights before training.
HISTOGRAMS = "histograms"
#: What to do about a damaged file.
REMEDY = "take another copy, or make it again"
# Entries about the training only: files in other formats leave them out.
_TRAINING_ENTRIES = ("history", HISTOGRAMS)
# Bounds of a record: levels of containers, values, and characters of a text. A command line may
# have 2 MB.
_MAX_DEPTH, _MAX_VALUES, _MAX_TEXT = 32, 1_000_000, 4_000_000
# Characters of a name (that of an MLP lists its widths) and of a path.
_MAX_NAME, _MAX_PATH = 1000, 4096
_MAX_BINS = 1000
# Weights are counted as float32; the distance of larger bounds may not be finite.
_MAX_FLOAT32 = float.fromhex("0x1.fffffep127")


def verify(
    path: Path,
    record: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor] | Mapping[str, Array] | None],
    specs: Mapping[str, TensorSpec],
) -> tuple[dict[str, Any], list[str]]:
    """Verify a record's digest, and drop the entries that are not as lpss writes them.

    Args:
        path: name of the file, for messages.
        record: the record as the file holds it.
        parts: the tensors beside it, see :func:`digest.record_digest`.
        specs: name → shape and dtype of the network's tensors.

    Returns:
        The record without its seal, and a note for the user on each entry that was dropped.

    Raises:
        InputError: the record does not consist of plain containers, comes from a newer lpss, or
            does not belong to the tensors.
    """
    try:
        meta = to_plain(record)
    except NotPlainError as reason:
        raise InputError(f"{path} is damaged: its record {reason}", REMEDY) from None
    version, sealed = meta.get("format", 0), meta.get(digest.MANIFEST_KEY)
    if type(version) is not int or not 0 <= version <= digest.RECORD_FORMAT:
        raise InputError(
            f"{path} has format {str(version)[:20]}, and this lpss reads up to "
            f"{digest.RECORD_FORMAT}",
            "update lpss, or make the file again",
        )
    is_sealed = version == digest.RECORD_FORMAT or sealed is not None
    if is_sealed and sealed != digest.record_digest(meta, parts):
        raise InputError(f"{path} is damaged: it is not what was written", REMEDY)
    seal = ("format", digest.MANIFEST_KEY)
    meta, dropped = drop_invalid({key: value for key, value in meta.items() if key not in seal})
    if not _describes(meta.get("weights") or {}, specs):
        dropped.append("weights")
        del meta["weights"]
    return meta, [f"{path}: ignored {name!r}, which is not as lpss writes it" for name in dropped]


def for_export(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that files in other formats hold."""
    return {key: value for key, value in record.items() if key not in _TRAINING_ENTRIES}


def drop_invalid(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop the entries that are not as lpss writes them; return the rest and the dropped names.

    Args:
        record: plain containers, see :func:`to_plain`. Entries that lpss does not know stay.
    """
    invalid = [
        key
        for key, is_valid in _ENTRIES.items()
        if record.get(key) is not None and not is_valid(record[key])
    ]
    return {key: value for key, value in record.items() if key not in invalid}, invalid


def _describes(facts: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> bool:
    """Return whether facts about prunable weights are about weights that the file has."""
    return all(
        name in specs
        and specs[name].is_floating_point()
        and specs[name].dim() >= 2
        and (fact.get("row_dim") or 0) < specs[name].dim()
        for name, fact in facts.items()
    )


class NotPlainError(Exception):
    """The record is not made of plain containers, or is too large; the message says how."""


def to_plain(value: Any) -> Any:
    """Return a copy made of dict, list, str, int, float, bool and None only.

    Raises:
        NotPlainError: the value holds something else, is nested too deeply (or in circles), or is
            too large. Shared parts count every time, as they do in any text that is made of them.
    """
    return _copy(value, _MAX_DEPTH, [_MAX_VALUES])


def _copy(value: Any, depth: int, remaining: list[int]) -> Any:
    remaining[0] -= 1
    if depth < 0 or remaining[0] < 0:
        raise NotPlainError("is nested too deeply or too large")
    if isinstance(value, str):
        if len(value) > _MAX_TEXT:
            raise NotPlainError(f"holds a text of {len(value):,} characters")
        return str(value)
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and abs(value) < 2**64:
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and len(key) <= _MAX_NAME for key in value):
            raise NotPlainError("has names that are not text")
        return {str(key): _copy(item, depth - 1, remaining) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item, depth - 1, remaining) for item in value]
    raise NotPlainError(f"holds a {type(value).__name__}")


# What the entries must be.


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_PATH


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and _is_path(value.get("name", ""))


def _are_metrics(value: Any) -> bool:
    """Return whether this is ``{"on": text, "before": None or name → number, …}``."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("on", ""), str)
        and all(
            part is None or (isinstance(part, dict) and all(map(_is_number, part.values())))
            for key, part in value.items()
            if key != "on"
        )
    )


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(epoch, dict) and all(item is None or _is_number(item) for item in epoch.values())
        for epoch in value
    )


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_settings(value: Any) -> bool:
    """Return whether these are training options; a report iterates over the targets of layers."""
    return isinstance(value, dict) and (value.get("layers") is None or _are_texts(value["layers"]))


def _are_weights(value: Any) -> bool:
    """Return whether this is name → facts about a layer; some of them go into formulas."""
    return isinstance(value, dict) and all(
        isinstance(fact, dict)
        and (fact.get("row_dim") is None or _is_count(fact["row_dim"]))
        and layer_info.is_valid(fact)
        for fact in value.values()
    )


def _is_search(value: Any) -> bool:
    """Return whether this is what a sparsity search writes, as far as a report shows it."""
    if not isinstance(value, dict) or not isinstance(value.get("curve"), list):
        return False
    is_described = isinstance(value.get("primary"), str) and _is_count(value.get("examples"))
    return (
        is_described
        and all(_is_number(value.get(key)) for key in ("allowed", "reference", "sparsity"))
        and all(
            isinstance(point, dict)
            and _is_number(point.get("sparsity"))
            and "metric" in point
            and (point["metric"] is None or _is_number(point["metric"]))
            for point in value["curve"]
        )
    )


def _are_histograms(value: Any) -> bool:
    """Return whether these are histograms by name, as ``report.histograms.of_model`` makes them."""
    return isinstance(value, dict) and all(map(_is_histogram, value.values()))


def _is_histogram(value: Any) -> bool:
    bins, outliers = {"low", "high", "counts"}, {"outside", "ends"}
    if not isinstance(value, dict) or set(value) not in (bins, bins | outliers):
        return False
    low, high, counts = value["low"], value["high"], value["counts"]
    are_counts = isinstance(counts, list) and all(map(_is_count, counts))
    fits = _are_bounds([low, high]) and are_counts and len(counts) <= _MAX_BINS and any(counts)
    if not fits or "ends" not in value:
        return fits
    ends, outside = value["ends"], value["outside"]
    return _are_bounds(ends, low, high) and type(outside) is int and outside > 0


def _are_bounds(bounds: Any, *between: float) -> bool:
    """Return whether these are two float32 numbers, with others between them, in rising order."""
    if not isinstance(bounds, list) or len(bounds) != 2:
        return False
    finite = all(type(bound) in (int, float) and abs(bound) <= _MAX_FLOAT32 for bound in bounds)
    numbers = [bounds[0], *between, bounds[1]]
    return finite and numbers == sorted(numbers)


# The entries that the program uses.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "arch": _is_name,
    "input_shape": _is_shape,
    "outputs": _is_count,
    "task": _is_name,
    "primary_metric": _is_name,
    "higher_is_better": lambda value: isinstance(value, bool),
    "data": _is_data,
    "data_name": _is_path,
    "data_fingerprint": _is_name,
    "classes": _are_texts,
    "preprocessing": _is_mapping,
    "method": _is_name,
    "config": _is_mapping,
    "notes": _are_texts,
    "settings": _are_settings,
    "sparsity": _is_number,
    "weights": _are_weights,
    "history": _is_history,
    HISTOGRAMS: _are_histograms,
    "versions": _are_versions,
    "device": _is_name,
    "command": lambda value: isinstance(value, str),
    "ticket": _is_name,
    "source": _is_mapping,
    "search": _is_search,
    "metrics": _are_metrics,
    "seconds": _is_number,
}
