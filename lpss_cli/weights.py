"""Which tensors of a model or of a bare state_dict count as prunable weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lpss_cli.patterns import speaks_of_weights
from lpss_cli.sphere import fan_in

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weight:
    """One prunable weight of a model.

    Attributes:
        name: the parameter's name in ``model.named_parameters()``.
        tensor: the parameter.
        row_dim: the dimension that counts neurons, or None where rows are no simple slices
            (grouped transposed convolutions): such a weight is pruned but not put on a sphere.
    """

    name: str
    tensor: Tensor
    row_dim: int | None = 0

    @property
    def fan_in(self) -> int | None:
        """Entries of one row; None where rows are no simple slices."""
        return None if self.row_dim is None else fan_in(self.tensor, self.row_dim)


def prunable(model: nn.Module) -> dict[str, Weight]:
    """Every weight of Linear, Conv and attention projections, in module order.

    A tied weight is listed once, under its first name.
    """
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for weight in _candidates(model):
        if id(weight.tensor) not in seen:
            seen.add(id(weight.tensor))
            found[weight.name] = weight
    return found


def trainable(model: nn.Module) -> dict[str, Weight]:
    """Those of the :func:`prunable` weights that training may change."""
    return {name: w for name, w in prunable(model).items() if w.tensor.requires_grad}


def _candidates(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, (nn.Linear, _ConvNd)):
            if isinstance(module.weight, nn.Parameter):
                yield Weight(f"{dot}weight", module.weight, _row_dim(module))
        elif isinstance(module, nn.MultiheadAttention):
            for name in _ATTENTION:
                tensor = getattr(module, name, None)
                if isinstance(tensor, nn.Parameter):
                    yield Weight(f"{dot}{name}", tensor)


def _row_dim(module: nn.Module) -> int | None:
    if isinstance(module, _ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0


def prunable_names(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Guess the prunable weights of a state_dict that comes without its network.

    Floating-point tensors of two or more dimensions whose names do not speak of embeddings,
    norms, tokens or positions.
    """
    return [
        name
        for name, tensor in state_dict.items()
        if tensor.dim() >= 2 and tensor.is_floating_point() and speaks_of_weights(name)
    ]


def bias_names(state_dict: Mapping[str, Tensor], prunable: Collection[str]) -> list[str]:
    """Return the biases that are added to what prunable weights give, in the state_dict's order.

    ``X.bias`` is that of ``X.weight`` and ``X.in_proj_bias`` that of ``X.in_proj_weight``; norms
    have none of these, for their weights are not prunable.
    """
    known = {f"{name.removesuffix('weight')}bias" for name in prunable if name.endswith("weight")}
    return [
        name
        for name, tensor in state_dict.items()
        if name in known and tensor.dim() == 1 and tensor.is_floating_point()
    ]


def untied(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict without the second and later names of one and the same tensor."""
    first: dict[object, str] = {}
    for name, tensor in state_dict.items():
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        first.setdefault(place if tensor.numel() else name, name)
    return {name: state_dict[name] for name in first.values()}


def not_finite(tensor: Tensor) -> int:
    """Count the entries of a tensor that are NaN or infinite; 0 for whole numbers."""
    if tensor.is_complex():
        return int((~tensor.isfinite()).sum())
    if not tensor.is_floating_point():
        return 0
    # PyTorch has no such test for numbers of 8 bits.
    values = tensor.float() if tensor.element_size() == 1 else tensor
    if bool(values.sum(dtype=torch.float64).isfinite()):  # quick, and no sum of others is
        return 0
    return int((~values.isfinite()).sum())
