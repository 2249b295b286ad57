"""Network specs as text: what ``--arch`` may say. Imports no torch."""

from __future__ import annotations

from math import prod
from pathlib import Path

from lpss_cli.errors import InputError, nearest
from lpss_cli.models.checks import size_text

KNOWN: tuple[str, ...] = (
    "mlp",
    "lenet300",
    "lenet5",
    "wrn12",
    "wrn18",
    "wrn22-2",
    "wrn22-4",
    "resnet20",
    "resnet56",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "conv2",
    "conv4",
    "conv6",
)

# Beyond a 64x64 colour image the first layer of an MLP is nearly the whole network.
_LARGEST_MLP_INPUT = 3 * 64 * 64


def is_import_path(arch: str) -> bool:
    """Recognise ``file.py:factory`` and ``pkg.mod:factory``: specs that run somebody's code.

    Callers refuse such a spec when it comes out of a checkpoint.
    """
    head, colon, _ = arch.partition(":")
    return bool(colon) and head not in ("mlp", "torchvision", "timm", "hf")


def resolve(arch: str | None, input_shape: tuple[int, ...], outputs: int) -> str:
    """Complete the spec of a network for this data.

    Args:
        arch: what was asked for; ``None`` and ``mlp`` mean ``mlp:<in>-300-100-<out>``.
        input_shape: shape of one sample.
        outputs: width of the last layer.

    Raises:
        InputError: unknown name; an MLP whose ends do not fit the data; no ``arch`` for
            inputs too large for an MLP.
    """
    if arch is None or arch == "mlp":
        return _default_mlp(input_shape, outputs)
    if arch.startswith("mlp:"):
        return _checked_mlp(arch, prod(input_shape), outputs)
    if arch in KNOWN or ":" in arch:
        return arch
    what = f"unknown network {arch!r}"
    if Path(arch).suffix == ".py":
        raise InputError(what, f"name the function that makes it too: {arch}:FUNCTION")
    others = "torchvision:NAME, timm:NAME, hf:FOLDER, file.py:FUNCTION"
    raise InputError(what, f"{nearest(arch, KNOWN)}, {others}")


def mlp_widths(spec: str) -> list[int]:
    """``mlp:784-300-100-10`` -> ``[784, 300, 100, 10]``.

    Raises:
        InputError: fewer than two widths, or one that is not a positive whole number.
    """
    parts = spec.removeprefix("mlp:").split("-")
    # isdecimal also takes the digits of other scripts; isascii keeps specs spelled one way.
    whole = all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts)
    if len(parts) < 2 or not whole:
        raise InputError(
            f"{spec!r} is not a list of layer widths",
            "write the widths with dashes, inputs first: mlp:784-300-100-10",
        )
    return [int(part) for part in parts]


def _default_mlp(input_shape: tuple[int, ...], outputs: int) -> str:
    inputs = prod(input_shape)
    if inputs > _LARGEST_MLP_INPUT:
        raise InputError(
            f"inputs of {size_text(input_shape)} are {inputs} numbers, too many for the "
            f"default MLP (at most {_LARGEST_MLP_INPUT})",
            "name a network: --arch torchvision:resnet18",
        )
    return f"mlp:{inputs}-300-100-{outputs}"


def _checked_mlp(spec: str, inputs: int, outputs: int) -> str:
    widths = mlp_widths(spec)
    faults = []
    if widths[0] != inputs:
        faults.append(f"{widths[0]} inputs where the data has {inputs}")
    if widths[-1] != outputs:
        faults.append(f"{widths[-1]} outputs where the data has {outputs}")
    fitting = "-".join(map(str, [inputs, *widths[1:-1], outputs]))
    if faults:
        raise InputError(f"{spec} has {' and '.join(faults)}", f"write --arch mlp:{fitting}")
    return f"mlp:{fitting}"  # spelled one way: mlp:064-… becomes mlp:64-…
