"""Files of ``torch.save``, examined before PyTorch loads them.

PyTorch 1.6 and later write zip archives; earlier versions wrote a sequence of pickles. Both are
checked here for structure, for code and for the memory that their tensors ask for. The rules for
the pickles themselves are in :mod:`pickle_scan`.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

from lpss_cli.checkpoints.pickle_scan import (
    MAX_TENSORS,
    CodeFoundError,
    PickleContents,
    RefusedError,
    TensorView,
    end_of,
    scan,
)
from lpss_cli.checkpoints.read_file import ZIP_MAGIC
from lpss_cli.errors import InputError, one_line

# A file from before PyTorch 1.6 begins with three small pickles: this number, the version of the
# protocol, and the number sizes of the machine.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = pickle.dumps(0x1950A86A20F9469CFC6C, 2), 1001
# Expanded tensors (stride 0) may be this many bytes larger than their file. All tensors together
# may be this many times as large as that (layers can share their weights).
_MAX_EXPANSION, _MAX_SHARING = 1 << 24, 100
_GIVE_CHECKPOINT = "give a torch.save file of a state_dict, or a safetensors file"
_MAY_BE_DAMAGED = "the file may be damaged; take another copy"


def load(path: Path, data: bytes, *, trust_pickle: bool = False) -> Any:
    """Return what ``torch.load`` makes of a file, on the CPU.

    Args:
        path: name of the file, for messages.
        data: content of the file.
        trust_pickle: unpickle arbitrary objects without examining them.

    Raises:
        InputError: the file is damaged, is of another format, asks for more memory than it holds,
            or needs code to load.
    """
    try:
        if data[:4] == ZIP_MAGIC:
            _examine_archive(data, trust_pickle)
        elif not trust_pickle:
            _examine_legacy(data)
    except CodeFoundError as code:
        if str(code).startswith("torch._utils."):
            raise InputError(
                f"{path} holds a tensor that is not a plain one ({code})",
                "save dense tensors, not sparse, quantized or empty (meta) ones",
            ) from None
        raise InputError(
            f"{path} holds pickled objects ({code}), and loading them could run any code",
            "save model.state_dict() instead, or pass --trust-pickle if you trust its origin",
        ) from None
    except _OtherFormatError as error:
        kind, remedy = (*error.args, _GIVE_CHECKPOINT)[:2]
        raise InputError(f"{path} is {kind}", remedy) from None
    except RefusedError as reason:
        raise InputError(f"{path} cannot be read: {reason}", _MAY_BE_DAMAGED) from None
    return _torch_load(path, data, trust_pickle)


class _OtherFormatError(Exception):
    """The file is not a checkpoint: what it is and, where that is special, what to do."""


def _examine_archive(data: bytes, trust_pickle: bool) -> None:
    """Check an archive's structure and checksums, and that its tensors fit into it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
            for info in archive.infolist():
                with archive.open(info) as member:  # reading to the end checks the CRC-32
                    while member.read(1 << 20):
                        pass
            if trust_pickle:
                return
            contents = scan(io.BytesIO(archive.read(members["data.pkl"])))
    # zipfile raises NotImplementedError for a compression that it lacks, and RuntimeError for an
    # encrypted member.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(one_line(error)) from None
    except (struct.error, ValueError, OverflowError, OSError, IndexError) as error:
        raise RefusedError(f"its archive is damaged ({one_line(error)})") from None
    _check_memory(contents, len(data))
    for key, storage in contents.storages.items():
        member_info = members.get(f"data/{key}")
        if member_info is None or member_info.file_size < storage.nbytes:
            raise RefusedError(f"storage {key[:40]} is shorter than its {storage.nbytes:,} bytes")


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name below the archive's folder.

    Raises:
        RefusedError: the archive has something that two readers may take differently.
    """
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > MAX_TENSORS + 100:
        raise RefusedError(f"it has {len(infos):,} members")
    names = [info.filename for info in infos]
    folder = names[0].split("/")[0] + "/" if names else ""
    if f"{folder}constants.pkl" in names:
        raise _OtherFormatError(
            "a TorchScript archive",
            "take the weights out: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    if any(name.endswith(".npy") for name in names):
        raise _OtherFormatError("a NumPy archive")
    if f"{folder}data.pkl" not in names:
        raise _OtherFormatError("a zip archive of something else")
    if len({name.lower() for name in names}) != len(names):
        raise RefusedError("two members of its archive have one name")
    end = 0
    for info in infos:
        if not info.filename.startswith(folder):
            raise RefusedError(f"its member {info.filename[:80]!r} is outside {folder}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise RefusedError("a member of its archive is compressed, which torch.save never does")
        if info.flag_bits & 0x1:
            raise RefusedError("its archive is encrypted")
        if info.header_offset < end or (end == 0 and info.header_offset != 0):
            raise RefusedError("members of its archive overlap")
        end = info.header_offset + 30 + len(info.filename) + info.file_size
    return {info.filename.removeprefix(folder): info for info in infos}


def _examine_legacy(data: bytes) -> None:
    """Check a file from before PyTorch 1.6: five pickles, then the memory of the tensors."""
    if not data.startswith(_LEGACY_MAGIC):
        raise _OtherFormatError("not a readable checkpoint")
    stream = io.BytesIO(data)
    stream.seek(len(_LEGACY_MAGIC))
    if scan(stream).value != _LEGACY_PROTOCOL:
        raise RefusedError("its format is unknown")
    scan(stream)  # sizes of numbers on the machine that wrote the file
    contents = scan(stream)
    keys = scan(stream).value
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise RefusedError("its list of storages is damaged")
    if len(set(keys)) != len(keys) or set(keys) != set(contents.storages):
        raise RefusedError("its list of storages is not that of its tensors")
    for key in keys:
        storage = contents.storages[key]
        count = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        if count * storage.itemsize != storage.nbytes or start + storage.nbytes > len(data):
            raise RefusedError(f"storage {key[:40]} is shorter than its {storage.nbytes:,} bytes")
        stream.seek(storage.nbytes, io.SEEK_CUR)
    _check_memory(contents, len(data))


def _check_memory(contents: PickleContents, file_bytes: int) -> None:
    """Check that every tensor lies inside its storage, and how much memory they take together."""
    expanded = total = 0
    for view in contents.views:
        if end_of(view) > view.storage.nbytes:
            raise RefusedError(f"a tensor of shape {_shape_text(view)} is larger than its storage")
        elements = 1
        for extent in view.shape:
            elements *= max(extent, 1)  # (2**60, 0) holds nothing, but has 2**60 rows
        total += elements * view.itemsize
        if elements * view.itemsize > view.storage.nbytes:
            expanded += elements * view.itemsize
    allowed = file_bytes + _MAX_EXPANSION
    if expanded > allowed or total > _MAX_SHARING * allowed:
        raise RefusedError(f"its tensors take {total:.3g} bytes in a file of {file_bytes:,}")


def _shape_text(view: TensorView) -> str:
    return "×".join(map(str, view.shape))[:80]


def _torch_load(path: Path, data: bytes, trust_pickle: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to programmers about old pickles
            # Explicit: an environment variable can switch PyTorch's own default off.
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=not trust_pickle)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be unpickled: {_first_sentence(error)}",
            "run lpss where that code can be imported, or save model.state_dict() instead",
        ) from None
    except pickle.UnpicklingError:  # its text advises to load without any check
        raise InputError(f"{path} cannot be read: its pickle is damaged", _MAY_BE_DAMAGED) from None
    except (RuntimeError, EOFError, OSError, MemoryError) as error:
        reason = _first_sentence(error)
        raise InputError(f"{path} cannot be read: {reason}", _MAY_BE_DAMAGED) from None
    except Exception:  # a pickle of random bytes can fail in any way
        raise InputError(f"{path} is not a readable checkpoint", _GIVE_CHECKPOINT) from None


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error; PyTorch's continue with advice and stack traces."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.split(r"\. |weights_only", text)[0][:200]
