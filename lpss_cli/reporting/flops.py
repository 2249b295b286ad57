"""The cost of each layer of a network: the shape of its weight, parameters and multiply-adds.

Multiply-adds are those of the weight alone, in closed form, from the sizes that hooks see.
PyTorch's ``FlopCounterMode``, which counts whole networks in ``utils.torch_utils.forward_flops``,
does not give the same numbers per layer: it misses the layers of a ``TransformerEncoder``, whose
fused kernel it does not know, adds the products of a parametrization to its layer, and counts a
module that is registered twice under one of its names.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class LayerSize:
    """The cost of a linear layer or convolution.

    Attributes:
        name: name of the module.
        shape: shape of its weight.
        parameters: number of entries of weight and bias.
        multiply_adds: multiply-adds of the weight per example, two floating-point operations each.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Savings:
    """What the removal of dead units saves.

    Attributes:
        before, after: the layers, in order.
        parameters: number of parameters of the whole network before and after, including those of
            BatchNorm.
        reason: why nothing was removed, or which operations kept their channels; empty otherwise.
    """

    before: tuple[LayerSize, ...]
    after: tuple[LayerSize, ...]
    parameters: tuple[int, int]
    reason: str = ""

    @property
    def changed(self) -> bool:
        """Return whether any layer became smaller."""
        return [x.shape for x in self.before] != [x.shape for x in self.after]

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Return the multiply-adds of all layers per example, before and after."""
        before, after = (sum(x.multiply_adds for x in sizes) for sizes in (self.before, self.after))
        return before, after

    @property
    def flops(self) -> tuple[int, int]:
        """Return the floating-point operations of these layers per example, before and after."""
        before, after = self.multiply_adds
        return 2 * before, 2 * after

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "parameters": list(self.parameters),
            "multiply_adds": list(self.multiply_adds),
            "flops": list(self.flops),
            "reason": self.reason,
            "layers": [
                {"name": old.name, "before": asdict(old), "after": asdict(new)}
                for old, new in zip(self.before, self.after, strict=True)
            ],
        }


@torch.no_grad()
def layer_sizes(model: nn.Module, example: Tensor) -> tuple[LayerSize, ...]:
    """Measure every linear layer and convolution, in the order of the modules.

    Args:
        model: a network on the CPU; it is not changed.
        example: inputs of shape (N ≥ 1, …); their values do not matter.
    """
    model = copy.deepcopy(model).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    multiply_adds = dict.fromkeys(layers, 0)
    for name, layer in layers.items():

        def count(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            multiply_adds[name] += _multiply_adds(module, inputs[0], output) // len(example)

        layer.register_forward_hook(count)
    model(example)
    return tuple(
        LayerSize(
            name,
            tuple(layer.weight.shape),
            sum(p.numel() for p in layer.parameters()),
            multiply_adds[name],
        )
        for name, layer in layers.items()
    )


def _multiply_adds(module: nn.Module, input: Tensor, output: Tensor) -> int:
    """Return the multiply-adds of a call that uses every weight once at every position.

    Positions are those of the output, or of the input of a transposed convolution, batch included.
    """
    assert isinstance(module, nn.Linear | _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return module.weight.numel() * input.numel() // module.in_channels
    return module.weight.numel() * output.numel() // len(module.weight)
