"""Files that people mistake for checkpoints, told by their first bytes."""

from __future__ import annotations

from pathlib import Path

from lpss_cli.errors import InputError

_OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
}


def is_onnx(data: bytes) -> bool:
    """Whether a file that begins so is an ONNX model.

    It is a protobuf: field 1, the version of the format, then one of the fields 2 to 8.
    """
    first = len(data) > 2 and data[:1] == b"\x08" and 1 <= data[1] <= 64
    return first and data[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def refuse_others(path: Path, data: bytes) -> None:
    """Refuse a file whose content is known to be no checkpoint.

    Raises:
        InputError: says what it is.
    """
    if is_onnx(data):
        raise InputError(
            f"{path} is an ONNX model, and those cannot be read back",
            "give the .pt or .safetensors file it was made from",
        )
    for start, kind in _OTHER_KINDS.items():
        if data.startswith(start):
            raise InputError(
                f"{path} is {kind}, not a checkpoint",
                "give a torch.save file of a state_dict, or a safetensors file",
            )
