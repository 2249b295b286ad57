"""Recognising data that is code."""

from __future__ import annotations


def is_import_path(name: str) -> bool:
    """Whether loading this name would run code: ``some/file.py:function``.

    A checkpoint may come from anyone, so an import path found inside one is refused.
    """
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()
