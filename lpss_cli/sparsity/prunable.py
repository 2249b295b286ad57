"""Which parameters of a model count as prunable weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from lpss_cli.errors import InputError
from lpss_cli.sparsity.lp_geometry import fan_in

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


def prunable_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of Linear, Conv and attention projections, in module order.

    A tied weight is listed once, under its first name; one without entries is not listed.

    Raises:
        InputError: a weight of a lazy layer has no shape yet.
    """
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for weight in _candidates(model):
        if isinstance(weight.tensor, UninitializedParameter):
            raise InputError(
                f"{weight.name} has no shape yet", "let the network see an example before"
            )
        if id(weight.tensor) not in seen and weight.tensor.numel():
            seen.add(id(weight.tensor))
            found[weight.name] = weight
    return found


def reparametrized_weights(model: nn.Module) -> list[str]:
    """Names of the weights of Linear and Conv that are made from other parameters.

    Weight norm, spectral norm and ``torch.nn.utils.prune`` leave such: what training changes is
    not what is multiplied, so it cannot be pruned.
    """
    return [
        f"{prefix}.weight".removeprefix(".")
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and "weight" not in _own(module)
    ]


def trainable_weights(model: nn.Module) -> dict[str, Weight]:
    """Those of the :func:`prunable` weights that training may change."""
    return {name: w for name, w in prunable_weights(model).items() if w.tensor.requires_grad}


def _candidates(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules():
        dot, own = f"{prefix}." if prefix else "", _own(module)
        if isinstance(module, (nn.Linear, _ConvNd)):
            if "weight" in own:
                yield Weight(f"{dot}weight", own["weight"], _row_dim(module))
        elif isinstance(module, nn.MultiheadAttention):
            yield from (Weight(f"{dot}{name}", own[name]) for name in _ATTENTION if name in own)


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters; as an attribute, a weight may be computed anew."""
    return dict(module.named_parameters(recurse=False))


def _row_dim(module: nn.Module) -> int | None:
    if isinstance(module, _ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0


def without_tied(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict without the second and later names of one and the same tensor."""
    first: dict[object, str] = {}
    for name, tensor in state_dict.items():
        place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        first.setdefault(place if tensor.numel() else name, name)
    return {name: state_dict[name] for name in first.values()}
