"""Which parameters of a model count as prunable weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lpss_cli.sphere import fan_in

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weight:
    """One prunable weight of a model.

    Attributes:
        name: the module's and the parameter's name, as in ``model.state_dict()``; of a weight that
            is tied to one of another kind (an embedding), not the first name it has there.
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


def untied(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict without the second and later names of one and the same tensor."""
    first: dict[object, str] = {}
    for name, tensor in state_dict.items():
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        first.setdefault(place if tensor.numel() else name, name)
    return {name: state_dict[name] for name in first.values()}
