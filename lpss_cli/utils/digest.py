"""The manifest of an artifact: a digest of its content, so that no bit can change unnoticed.

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

#: Format of the record. 1: without a manifest. 2: with one.
RECORD_FORMAT = 2
#: The entry of the record that holds the digest of the rest. If a file's texts contain it, they
#: hold a record of lpss, readable or not.
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

    The names, dtypes, shapes and bytes of the tensors count; their order and strides do not.

    Args:
        record: plain containers, in which tuples count as lists. An entry ``MANIFEST_KEY`` is left
            out.
        parts: groups of tensors, or of their values, by the group's name; None for a group that is
            absent.

    Raises:
        TypeError: the record holds something that is not a plain container.
    """
    plain = {key: value for key, value in record.items() if key != MANIFEST_KEY}
    sha256 = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    for part, tensors in sorted(parts.items()):
        for name in sorted(tensors or {}):
            # One at a time: they may come from a file.
            array = arrays.to_numpy((tensors or {})[name])
            # As JSON, so that no two lists of names and shapes give the same text.
            header = [part, name, f"torch.{array.dtype.name}", list(array.shape)]
            sha256.update(json.dumps(header).encode())
            sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
