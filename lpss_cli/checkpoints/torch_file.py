"""Files of ``torch.save``: archives and the pickles from before them, examined before loading."""

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
    MOST_TENSORS,
    CodeFoundError,
    Outline,
    RefusedError,
    View,
    outline,
    span,
)
from lpss_cli.errors import InputError, one_line

# What begins a file of PyTorch before 1.6: three small pickles, of this number, of the protocol
# and of the machine's number sizes.
_MAGIC, _PROTOCOL = pickle.dumps(0x1950A86A20F9469CFC6C, 2), 1001
_DO = "give a torch.save file of a state_dict, or a safetensors file"
# Expanded tensors (stride 0) may be that many bytes larger than their file; all tensors together
# that many times (layers that share their weights).
_EXPANSION, _SHARING = 1 << 24, 100
_DAMAGED = "the file may be damaged; take another copy"


def load(path: Path, data: bytes, *, trust_pickle: bool = False) -> Any:
    """Return what ``torch.load`` makes of a file, on the CPU.

    Args:
        path: of the file, for messages.
        data: its content.
        trust_pickle: unpickle arbitrary objects, unexamined.

    Raises:
        InputError: damaged, of another kind, asks for more memory than it holds, or needs code.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            _examine_archive(data, trust_pickle)
        elif not trust_pickle:
            _examine_pickles(data)
    except CodeFoundError as found:
        if str(found).startswith("torch._utils."):
            raise InputError(
                f"{path} holds a tensor that is not a plain one ({found})",
                "save dense tensors, not sparse, quantized or empty (meta) ones",
            ) from None
        raise InputError(
            f"{path} holds pickled objects ({found}), and loading them could run any code",
            "save model.state_dict() instead, or pass --trust-pickle if you trust its origin",
        ) from None
    except _OtherKindError as kind:
        what, do = (*kind.args, _DO)[:2]
        raise InputError(f"{path} is {what}", do) from None
    except RefusedError as reason:
        raise InputError(f"{path} cannot be read: {reason}", _DAMAGED) from None
    return _torch_load(path, data, trust_pickle)


class _OtherKindError(Exception):
    """The file is sound and no checkpoint: what it is, and what to do where that is special."""


def _examine_archive(data: bytes, trust_pickle: bool) -> None:
    """Check an archive's structure and sums, and that its tensors fit into it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
            for info in archive.infolist():
                with archive.open(info) as member:  # reading to the end checks the CRC-32
                    while member.read(1 << 20):
                        pass
            if trust_pickle:
                return
            described = outline(io.BytesIO(archive.read(members["data.pkl"])))
    # zipfile: NotImplementedError is a compression it lacks, RuntimeError an encrypted member.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(one_line(error)) from None
    except (struct.error, ValueError, OverflowError, OSError, IndexError) as error:
        raise RefusedError(f"its archive is damaged ({one_line(error)})") from None
    _check_views(described, len(data))
    for key, storage in described.storages.items():
        stored = members.get(f"data/{key}")
        if stored is None or stored.file_size < storage.nbytes:
            raise RefusedError(f"storage {key[:40]} is shorter than its {storage.nbytes:,} bytes")


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name below the archive's folder; refuse what readers disagree on."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > MOST_TENSORS + 100:
        raise RefusedError(f"it has {len(infos):,} members")
    names = [info.filename for info in infos]
    folder = names[0].split("/")[0] + "/" if names else ""
    if f"{folder}constants.pkl" in names:
        raise _OtherKindError(
            "a TorchScript archive",
            "take the weights out: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    if any(name.endswith(".npy") for name in names):
        raise _OtherKindError("a NumPy archive")
    if f"{folder}data.pkl" not in names:
        raise _OtherKindError("a zip archive of something else")
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


def _examine_pickles(data: bytes) -> None:
    """Check a file from before PyTorch 1.6: five pickles, then the memory of the tensors."""
    if not data.startswith(_MAGIC):
        raise _OtherKindError("not a readable checkpoint")
    stream = io.BytesIO(data)
    stream.seek(len(_MAGIC))
    if outline(stream).value != _PROTOCOL:
        raise RefusedError("its format is unknown")
    outline(stream)  # sizes of numbers on the machine it comes from
    described = outline(stream)
    keys = outline(stream).value
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise RefusedError("its list of storages is damaged")
    if len(set(keys)) != len(keys) or set(keys) != set(described.storages):
        raise RefusedError("its list of storages is not that of its tensors")
    for key in keys:
        storage = described.storages[key]
        count = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        if count * storage.itemsize != storage.nbytes or start + storage.nbytes > len(data):
            raise RefusedError(f"storage {key[:40]} is shorter than its {storage.nbytes:,} bytes")
        stream.seek(storage.nbytes, io.SEEK_CUR)
    _check_views(described, len(data))


def _check_views(described: Outline, size: int) -> None:
    """Check that every tensor lies inside its storage, and what expanded ones come to."""
    expanded = total = 0
    for view in described.views:
        if span(view) > view.storage.nbytes:
            raise RefusedError(f"a tensor of shape {_shape(view)} is larger than its storage")
        elements = 1
        for extent in view.shape:
            elements *= max(extent, 1)  # (2**60, 0) holds nothing, and has 2**60 rows
        total += elements * view.itemsize
        if elements * view.itemsize > view.storage.nbytes:
            expanded += elements * view.itemsize
    if expanded > size + _EXPANSION or total > _SHARING * (size + _EXPANSION):
        raise RefusedError(f"its tensors come to {total:.3g} bytes in a file of {size:,}")


def _shape(view: View) -> str:
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
            f"{path} cannot be unpickled: {_reason(error)}",
            "run lpss where that code can be imported, or save model.state_dict() instead",
        ) from None
    except pickle.UnpicklingError:  # its text advises to load without any check
        raise InputError(f"{path} cannot be read: its pickle is damaged", _DAMAGED) from None
    except (RuntimeError, EOFError, OSError, MemoryError) as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}", _DAMAGED) from None
    except Exception:  # a pickle of random bytes can fail in any way
        raise InputError(f"{path} is not a readable checkpoint", _DO) from None


def _reason(error: BaseException) -> str:
    """First sentence of an error; PyTorch's go on with advice and stack traces."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.split(r"\. |weights_only", text)[0][:200]
