"""A digest over everything an artefact says, kept inside it: no bit of it can change unnoticed.

The same content has the same digest as a ``torch.save`` file and as safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lpss_cli.utils import arrays
from lpss_cli.utils.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

#: Of the record. 1: without a manifest. 2: with one.
RECORD_FORMAT = 2
#: The record's entry that holds the digest of the rest. Found in a file's texts, it says that they
#: hold a record of ours, readable or not.
MANIFEST_KEY = "lpss_manifest"


def seal_record(
    record: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor] | None]
) -> dict[str, Any]:
    """Return a record with its format and manifest: what is written into a file."""
    plain = {**record, "format": RECORD_FORMAT}
    return {**plain, MANIFEST_KEY: record_digest(plain, parts)}


def record_digest(
    record: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor] | Mapping[str, Array] | None],
) -> str:
    """Return the SHA-256, in hex, of a record and of the tensors beside it.

    Args:
        record: plain containers; an entry ``KEY`` is left out. Tuples count as lists.
        parts: groups of tensors, or of their values, by the group's name; None for a group that is
            not there.

    Names, dtypes, shapes and bytes of the tensors count, their order and strides do not.

    Raises:
        TypeError: the record holds something that is no plain container.
    """
    plain = {key: value for key, value in record.items() if key != MANIFEST_KEY}
    found = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    for part, tensors in sorted(parts.items()):
        for name in sorted(tensors or {}):
            # One at a time: they may come from a file.
            array = arrays.to_numpy((tensors or {})[name])
            # As JSON, so that no two lists of names and shapes give the same text.
            head = [part, name, f"torch.{array.dtype.name}", list(array.shape)]
            found.update(json.dumps(head).encode())
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
