"""Prunable weights: which parameters of a model are pruned, and which are not."""

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
        name: the module's and the parameter's name, as in ``model.state_dict()``. If the weight is
            tied to one of another kind (an embedding), this may not be its first name there.
        tensor: the parameter.
        row_dim: the dimension that counts neurons, or None if rows are not simple slices (grouped
            transposed convolutions): such a weight is pruned, but not put on a sphere.
    """

    name: str
    tensor: Tensor
    row_dim: int | None = 0

    @property
    def fan_in(self) -> int | None:
        """Entries of one row; None if rows are not simple slices."""
        return None if self.row_dim is None else fan_in(self.tensor, self.row_dim)


def prunable_weights(model: nn.Module) -> dict[str, Weight]:
    """Return the weights of Linear, Conv and attention projections by name, in module order.

    A tied weight is listed once, under its first name. A weight without entries is not listed.

    Raises:
        InputError: a weight of a lazy layer has no shape yet.
    """
    weights: dict[str, Weight] = {}
    seen: set[int] = set()
    for weight in _candidates(model):
        if isinstance(weight.tensor, UninitializedParameter):
            raise InputError(
                f"{weight.name} has no shape yet", "run an example through the network first"
            )
        if id(weight.tensor) not in seen and weight.tensor.numel():
            seen.add(id(weight.tensor))
            weights[weight.name] = weight
    return weights


def reparametrized_weights(model: nn.Module) -> list[str]:
    """Return the names of Linear and Conv weights that are computed from other parameters.

    Weight norm, spectral norm and ``torch.nn.utils.prune`` make such weights. What training
    changes is not what is multiplied, so it cannot be pruned.
    """
    return [
        f"{prefix}.weight".removeprefix(".")
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and "weight" not in _parameters(module)
    ]


def trainable_weights(model: nn.Module) -> dict[str, Weight]:
    """Return the :func:`prunable_weights` that require a gradient."""
    return {name: w for name, w in prunable_weights(model).items() if w.tensor.requires_grad}


def _candidates(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules():
        dot, parameters = f"{prefix}." if prefix else "", _parameters(module)
        if isinstance(module, (nn.Linear, _ConvNd)):
            if "weight" in parameters:
                yield Weight(f"{dot}weight", parameters["weight"], _row_dim(module))
        elif isinstance(module, nn.MultiheadAttention):
            for name in _ATTENTION:
                if name in parameters:
                    yield Weight(f"{dot}{name}", parameters[name])


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's own parameters; an attribute ``weight`` may be computed from others."""
    return dict(module.named_parameters(recurse=False))


def _row_dim(module: nn.Module) -> int | None:
    if isinstance(module, _ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0


def without_tied(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict without the second and later names of the same tensor."""
    first_names: dict[object, str] = {}
    for name, tensor in state_dict.items():
        identity = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        first_names.setdefault(identity if tensor.numel() else name, name)
    return {name: state_dict[name] for name in first_names.values()}
