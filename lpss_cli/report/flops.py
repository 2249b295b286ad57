"""What each layer of a network costs: the shape of its weight, parameters and multiply-adds."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class LayerSize:
    """The cost of one Linear or convolution.

    Attributes:
        name: the module.
        shape: of its weight.
        parameters: weight and bias.
        multiply_adds: per example, of the weight alone; half of what counters of floating-point
            operations say.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Savings:
    """What removing dead units saved.

    Attributes:
        before, after: the layers, in order.
        parameters: of the whole network, before and after, BatchNorm's included.
        reason: why nothing was removed, or which operations kept their channels; empty otherwise.
    """

    before: tuple[LayerSize, ...]
    after: tuple[LayerSize, ...]
    parameters: tuple[int, int]
    reason: str = ""

    @property
    def changed(self) -> bool:
        """Whether any layer became smaller."""
        return [x.shape for x in self.before] != [x.shape for x in self.after]

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Multiply-adds of all layers per example, before and after."""
        before, after = (sum(x.multiply_adds for x in part) for part in (self.before, self.after))
        return before, after

    @property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations of these layers per example: two for each multiply-add."""
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
    """Measure every Linear and convolution in the order of the modules.

    Args:
        model: on the CPU; it is left as it is.
        example: (N ≥ 1, …) inputs; only their shape matters.
    """
    model = copy.deepcopy(model).eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    counted = dict.fromkeys(layers, 0)
    for name, layer in layers.items():

        def count(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            counted[name] += _multiply_adds(module, inputs[0], output) // len(example)

        layer.register_forward_hook(count)
    model(example)
    return tuple(
        LayerSize(
            name,
            tuple(layer.weight.shape),
            sum(p.numel() for p in layer.parameters()),
            counted[name],
        )
        for name, layer in layers.items()
    )


def _multiply_adds(module: nn.Module, source: Tensor, output: Tensor) -> int:
    """Every weight is used once at every position; positions include the batch."""
    assert isinstance(module, nn.Linear | _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return module.weight.numel() * source.numel() // module.in_channels
    outputs = len(module.weight)
    return module.weight.numel() * output.numel() // outputs
