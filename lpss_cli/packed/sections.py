"""Strings of bytes as the file holds them: as they are, or as a zstd frame where that is shorter.

The length of the plain string is known before it is read, from the tensor's shape and code. A
stored string of that very length is plain, a shorter one is a zstd frame.
"""

from __future__ import annotations

import zstandard

from lpss_cli.packed.bits import MalformedError, need
from lpss_cli.packed.vocabulary import VOCABULARIES

# Beyond this the slow search for repetitions is left out.
_SEARCHED = 1 << 16
_WORDS = {
    version: zstandard.ZstdCompressionDict(words, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    for version, words in VOCABULARIES.items()
}


def store(data: bytes, compress: bool = True) -> bytes:
    """Return what the file holds: the shortest of the plain string and its zstd frames."""
    if not compress or not data:
        return data
    return min([data, *(made.compress(data) for made in _compressors(len(data)))], key=len)


def store_header(text: bytes, version: int, compress: bool = True) -> bytes:
    """Return what the file holds of its header: as it is, or as a frame with the vocabulary."""
    if not compress:
        return text
    made = zstandard.ZstdCompressor(level=19, dict_data=_WORDS[version])
    return min(text, made.compress(text), key=len)


def _compressors(length: int) -> list[zstandard.ZstdCompressor]:
    """Two ways to make a frame: entropy coding nearly alone, and a search for repetitions.

    The bytes of trained weights have few values and no repetitions: the short matches that the
    usual levels find by chance cost more than they save.
    """
    entropy = zstandard.ZstdCompressionParameters.from_level(
        1, strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=17
    )
    return [
        zstandard.ZstdCompressor(compression_params=entropy),
        zstandard.ZstdCompressor(level=19 if length <= _SEARCHED else 3),
    ]


def load_header(stored: bytes, length: int, version: int) -> bytes:
    """Return the plain header; as ``load``."""
    return _load(stored, length, zstandard.ZstdDecompressor(dict_data=_WORDS[version]))


def load(stored: bytes, length: int) -> bytes:
    """Return the plain string of ``length`` bytes; no more memory than that is taken.

    Raises:
        MalformedError: the stored string is longer, or no zstd frame of exactly that content.
    """
    return _load(stored, length, zstandard.ZstdDecompressor())


def _load(stored: bytes, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    need(len(stored) <= length, "a section that is longer than its content")
    if len(stored) == length:
        return stored
    try:
        # Asked first: the decompressor allocates what the frame declares.
        declared = zstandard.frame_content_size(stored)
        need(declared == length, f"a zstd frame of {declared} bytes instead of {length}")
        plain = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedError(f"a broken zstd frame ({error})") from None
    need(len(plain) == length, "a zstd frame of another length than it declares")
    return plain
