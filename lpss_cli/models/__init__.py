"""The networks lpss knows by name, and the way to any other one.

``resolve`` turns what a person typed into a full spec, ``build`` makes the network.
Importing this package does not import torch: the networks' files are loaded by ``build``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lpss_cli.models.spec import KNOWN, is_import_path, mlp_widths, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = ["KNOWN", "build", "is_import_path", "mlp_widths", "resolve"]

# The module and the function that make a network, by the letters its name begins with. Every one
# of them is called with (spec, input_shape, outputs).
_BUILDERS = {
    "mlp": "classic.build_mlp",
    "lenet": "classic.build_lenet",
    "conv": "classic.build_conv",
    "vgg": "classic.build_vgg",
    "wrn": "residual.build_wrn",
    "resnet": "residual.build_resnet",
    "torchvision:": "libraries.build",
    "timm:": "libraries.build",
    "hf:": "huggingface.build",
}


def build(arch: str | None, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Make a freshly initialised network, drawn from torch's global random generator.

    Args:
        arch: a spec, resolved or as typed (see ``resolve``).
        input_shape: shape of one sample: ``(channels, height, width)`` or ``(features,)``.
        outputs: width of the last layer: classes, or regression targets.

    Returns:
        A module in training mode that maps ``(batch, *input_shape)`` to ``(batch, outputs)``;
        for a factory of the user's, whatever it returned.

    Raises:
        InputError: unknown name, a shape the network cannot take, a factory that fails.
    """
    spec = resolve(arch, input_shape, outputs)
    if is_import_path(spec):
        place = "imported.build"
    else:
        place = next(place for start, place in _BUILDERS.items() if spec.startswith(start))
    module, function = place.split(".")
    builder = getattr(import_module(f".{module}", __name__), function)
    network: nn.Module = builder(spec, input_shape, outputs)
    return network
