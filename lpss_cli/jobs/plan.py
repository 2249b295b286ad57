"""What a sparse training would aim at: layer by layer the kept weights, and what a method chooses.

With the default method that is p and the Hoyer sparsity to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpss_cli import models
from lpss_cli.checkpoints import identify
from lpss_cli.checkpoints.load_weights import refuse_not_finite
from lpss_cli.checkpoints.loading import read
from lpss_cli.data.spec import SHAPES
from lpss_cli.errors import InputError
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.resolve import (
    input_file,
    load_data,
    sparsity_of,
)
from lpss_cli.reporting.report import weights_of
from lpss_cli.sparsity.layer_info import LayerColumn, LayerInfo, WithColumns
from lpss_cli.sparsity.layer_targets import layer_budgets
from lpss_cli.sparsity.masks import log_magnitude, select_masks
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import Weight, prunable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.method import DEFAULT, Method, make
from lpss_cli.training.options import SPARSITY


@dataclass(frozen=True)
class LayerPlan(WithColumns):
    """One prunable weight before training.

    Attributes:
        name: name of the parameter.
        shape: its shape.
        weights: number of entries.
        fan_in: entries of one row; None where rows are not simple slices.
        columns: name → number, of the columns of the method; None where one does not apply.
        kept: number of weights in its budget, by the ranking and the weights as they are now.
        columns_at_target: the same as ``columns``, for the layer at its target.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    fan_in: int | None
    columns: Mapping[str, float | None]
    kept: int
    columns_at_target: Mapping[str, float | None]


@dataclass(frozen=True)
class Plan:
    """The layers of a network with the target and the ranking that divides the budget.

    Attributes:
        source: what the weights are.
        sparsity: target of the whole network.
        ranking: how weights of different layers are compared.
        columns: what the method predicts about layers.
        layers: the prunable weights.
    """

    source: str
    sparsity: float
    ranking: str
    columns: tuple[LayerColumn, ...]
    layers: list[LayerPlan]

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights in the budget: ``N - round(s·N)``, fewer where more are zero already."""
        return sum(layer.kept for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "source": self.source,
            "sparsity": self.sparsity,
            "ranking": self.ranking,
            "prunable": self.weights,
            "kept": self.kept,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def plan(
    source: str,
    weights: Mapping[str, Weight],
    *,
    sparsity: float,
    options: Mapping[str, Any] | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    hoyer: float | None = None,
) -> Plan:
    """Work out what the default method would aim at in every layer, without training.

    Args:
        source: what the weights are, for the title.
        weights: name → weight, in layer order.
        sparsity: target, in [0, 1).
        options: of the method, those that its ``plan_options`` name.
        layers: ``PATTERN=SPARSITY`` of layers with a target of their own.
        skip: patterns of weights that are not pruned.
        hoyer: desired Hoyer sparsity of every layer without pruning, in place of ``p``.

    Raises:
        InputError: a pattern matches nothing, an option is out of range, or no p reaches ``hoyer``.
    """
    if not weights:
        raise InputError(f"{source} holds no prunable weight", "lpss prunes Linear and Conv layers")
    method = make(DEFAULT, options)
    skipped = resolve_patterns(skip, list(weights), "--skip")
    pruned = {name: w for name, w in weights.items() if name not in skipped}
    sizes = {name: w.tensor.numel() for name, w in pruned.items()}
    total = sum(sizes.values())
    check_sparsity(sparsity, total)
    budgets = layer_budgets(layers, sizes, sparsity)
    targets = dict.fromkeys(weights, sparsity) | budgets.sparsities(sizes)
    fan_ins = {name: w.fan_in for name, w in weights.items()}
    infos = method.plan_layers(fan_ins, targets, hoyer)
    scores = {name: log_magnitude(w.tensor) for name, w in pruned.items()}
    ranking = method.config.ranking
    own = {name: sizes[name] - zeros for name, zeros in budgets.layer_zeros.items()}
    masks = select_masks(scores, total - budgets.zeros, ranking, own)
    planned = [
        _layer_plan(method, weight, infos.get(name, {}), int(masks[name].sum()))
        for name, weight in pruned.items()
    ]
    return Plan(source, sparsity, ranking, method.plan_columns, planned)


def _layer_plan(method: Method, weight: Weight, info: LayerInfo, kept: int) -> LayerPlan:
    size, fan_in = weight.tensor.numel(), weight.fan_in

    def columns(sparsity: float, *, at_target: bool) -> dict[str, float | None]:
        return {
            column.name: column.value(info, fan_in, sparsity)
            for column in method.plan_columns
            if column.at_target == at_target
        }

    return LayerPlan(
        name=weight.name,
        shape=tuple(weight.tensor.shape),
        weights=size,
        fan_in=fan_in,
        columns=columns(0.0, at_target=False),
        kept=kept,
        columns_at_target=columns(1.0 - kept / size, at_target=True),
    )


def plan_for(
    path: Path | None,
    request: Request,
    hoyer: float | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a sparse training of a checkpoint, or of the network ``request.arch``.

    Neither the data nor, for a checkpoint, the network's code is needed.

    Args:
        path: The checkpoint; None: the network ``request.arch``, else the newest artifact here.
        request: What was asked for.
        hoyer: Hoyer sparsity wanted of every layer, in place of ``p``.
        note: Told what was found out about the file.

    Raises:
        InputError: Something asked for does not exist or fit.
    """
    if path is None and request.arch is not None:
        source, network = _untrained(request)
        weights = prunable_weights(network)
    else:
        path = input_file(path, note)
        checkpoint = read(path, trust_pickle=request.trust_pickle)
        for text in (*checkpoint.notes, *identify.introduce(checkpoint)):
            note(text)
        source, weights = str(path), weights_of(checkpoint)
        refuse_not_finite({name: weight.tensor for name, weight in weights.items()}, path)
    return plan(
        source,
        weights,
        sparsity=sparsity_of(request, weights, SPARSITY),
        options=request.options,
        layers=request.layers,
        skip=request.skip,
        hoyer=hoyer,
    )


def _untrained(request: Request) -> tuple[str, nn.Module]:
    """Build the network that was asked for; known data sets need not be there for it."""
    shape: tuple[int, ...]
    sizes = models.sizes_of(request.arch) if request.data is None else None
    if sizes is not None:
        shape, outputs, data = sizes[:1], sizes[1], None
    elif request.data is None or request.data in SHAPES:
        data = request.data or "digits"
        shape, outputs = SHAPES[data]
    else:
        loaded = load_data(request)
        data, shape, outputs = loaded.name, loaded.input_shape, loaded.outputs
    arch = models.resolve(request.arch, shape, outputs)
    torch.manual_seed(request.seed)
    return f"{arch} on {data}" if data else arch, models.build(arch, shape, outputs)
