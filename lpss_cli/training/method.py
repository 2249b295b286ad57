"""The interface of sparsification methods, and their registry.

A method is one file in ``lpss_cli/methods`` with one subclass of ``Method``. Its command-line
flags, its help and its contract tests follow from the class. Neither this module nor the file of a
method imports torch at module level, so that the help of a command appears at once.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from lpss_cli.errors import InputError, nearest
from lpss_cli.sparsity import layer_info
from lpss_cli.sparsity.layer_info import LayerColumn as LayerColumn  # for the files of methods
from lpss_cli.sparsity.layer_info import LayerFact as LayerFact
from lpss_cli.sparsity.schedules import warmup_cosine
from lpss_cli.utils import options as declarations
from lpss_cli.utils.options import Option
from lpss_cli.utils.options import option as option  # for the files of methods

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from lpss_cli.training.run import MethodContext


#: How weights of different layers are compared; see ``masks.RANKINGS``.
RANKINGS = ("lamp", "balanced", "magnitude", "uniform", "erk")

#: The methods that are used if none is named: for sparse and for dense training.
DEFAULT, DENSE = "lpss", "dense"


def default_method(sparse: bool = True) -> str:
    """Return the name of the method that trains a network when none is named."""
    return DEFAULT if sparse else DENSE


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Options that all methods share; subclasses add fields or change defaults."""

    lr: float = option(0.1, "peak learning rate", low=0)
    momentum: float = option(0.9, "Nesterov momentum", low=0, high=0.999)
    weight_decay: float = option(
        0.0, "L2 decay of the weights; biases and normalization layers have none", low=0
    )
    clip: float = option(2.0, "maximum norm of the gradient; 0 turns clipping off", low=0)
    warmup: float = option(0.05, "fraction of training with a rising learning rate", low=0, high=1)
    begin: float = option(0.1, "fraction of training before the first mask update", low=0, high=1)
    end: float = option(0.7, "fraction of training before the final pruning step", low=0, high=0.85)
    frequency: int = option(20, "number of steps between mask updates", low=1)
    ranking: str = option(
        "lamp",
        "how weights of different layers are compared, globally or by layer budgets",
        choices=RANKINGS,
    )

    def __post_init__(self) -> None:
        """Check every field against its declared choices and range.

        Raises:
            InputError: A value is not allowed; the remedy says which ones are.
        """
        declarations.check(self)


class Method:
    """Decides which weights of a run are pruned, and when. Override what differs.

    The trainer owns the rest. One step has this order: forward and backward pass →
    ``on_gradients`` (dense gradients) → gradients masked, then clipped → optimizer step → weights
    masked → ``on_weights`` → ``sparsity_at``. The trainer ranks ``scores`` to prune to exact
    counts, and after the fraction ``config.end`` of training it prunes to the target. The hooks see
    the run as a :class:`MethodContext`.

    Args:
        config: options of the method; None: their defaults.

    Raises:
        InputError: the first update comes after the final pruning.
    """

    #: Name for ``--method``; a class without one is a base class.
    name: ClassVar[str]
    #: Reference to the paper.
    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    #: Shared options that the method does not have.
    ignores: ClassVar[tuple[str, ...]] = ()
    #: What the method notes about layers in ``run.layer_info``.
    layer_facts: ClassVar[tuple[LayerFact, ...]] = ()
    #: Columns that follow from it, in reports and in ``lpss plan``.
    layer_columns: ClassVar[tuple[LayerColumn, ...]] = ()
    plan_columns: ClassVar[tuple[LayerColumn, ...]] = ()
    #: Options that change a plan.
    plan_options: ClassVar[tuple[str, ...]] = ("ranking",)
    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        attributes = cls.__dict__  # inherited ones have been declared already
        layer_info.declare(attributes.get("layer_facts", ()), attributes.get("layer_columns", ()))
        if "name" in attributes:
            if cls.name in Method.registry:
                raise TypeError(f"there are two methods called {cls.name!r}")
            Method.registry[cls.name] = cls

    def __init__(self, config: MethodConfig | None = None) -> None:
        self.config: Any = config or self.Config()
        begin, end = self.config.begin, self.config.end
        if begin > end and "begin" not in self.ignores:
            what = f"--begin {begin:g} comes after --end {end:g}"
            raise InputError(what, "give a smaller --begin")

    def plan_layers(
        self,
        fan_ins: Mapping[str, int | None],
        targets: Mapping[str, float],
        hoyer: float | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return what would be noted about layers before the first step, for ``lpss plan``.

        Args:
            fan_ins: name → entries of one row, in layer order; None if rows are not simple
                slices.
            targets: name → target sparsity of the layer.
            hoyer: desired Hoyer sparsity of every layer without pruning, if any.

        Raises:
            InputError: the method cannot steer the Hoyer sparsity, or not to this value.
        """
        if hoyer is not None:
            raise InputError(
                f"the method {self.name!r} does not steer the Hoyer sparsity", "leave --hoyer out"
            )
        return {}

    def prepare(self, run: MethodContext) -> None:
        """Set initial masks or weights, before the optimizer exists."""

    def make_optimizer(self, run: MethodContext) -> Optimizer:
        """Return the optimizer; momentum SGD unless overridden."""
        from torch.optim import SGD

        return SGD(
            run.decay_groups(self.config.weight_decay),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.momentum > 0,
        )

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor on every group's peak learning rate for the coming step."""
        # At the middle of the step: neither the first nor the last one has a factor of 0.
        return warmup_cosine((run.step + 0.5) / run.total_steps, self.config.warmup)

    def scores(self, run: MethodContext) -> Mapping[str, Tensor]:
        """Return the log-saliency of every prunable weight; -inf for one that stays zero."""
        from lpss_cli.sparsity.masks import log_magnitude

        return {name: log_magnitude(w) for name, w in run.weights.items()}

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity to prune to after this step; None leaves the masks as they are.

        Called after every step before the final pruning; see ``run.is_update_step``.
        """
        return None

    def on_prune(self, run: MethodContext) -> None:
        """See the masks after every pruning, along the path and at its end: a place to rewind."""

    def on_gradients(self, run: MethodContext) -> bool:
        """See the dense gradients before they are masked; return False to skip the step."""
        return True

    def on_weights(self, run: MethodContext) -> None:
        """See the weights after the step, masked again."""


@cache
def registry() -> dict[str, type[Method]]:
    """Return all methods by name: one from every module of ``lpss_cli.methods``."""
    importlib.import_module("lpss_cli.methods").load_all()
    return dict(sorted(Method.registry.items()))


def options_of(cls: type[Method]) -> list[Option]:
    """Return the options of a method: the fields of its Config, except those that it ignores."""
    declared = declarations.options(cls.Config)
    return [item for name, item in declared.items() if name not in cls.ignores]


def all_options() -> dict[str, Option]:
    """Return the options of all methods by key; the first method that has an option declares it.

    Options that all methods share are declared by ``MethodConfig``.
    """
    declared = dict(declarations.options(MethodConfig))
    for cls in registry().values():
        declared = declarations.options(cls.Config) | declared
    return {item.key: item for item in declared.values()}


def get(name: str) -> type[Method]:
    """Return the method of that name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in registry():
        raise InputError(f"unknown method {name!r}", nearest(name, tuple(registry())))
    return registry()[name]


def aliases() -> dict[str, str]:
    """Return alias → key of the options of all methods."""
    return {alias: item.key for item in all_options().values() for alias in item.aliases}


def texts(value: float | str | Sequence[float | str]) -> tuple[str, ...]:
    """Return a number, a text or several of them as an option with several texts takes them."""
    return (str(value),) if isinstance(value, (int, float, str)) else tuple(map(str, value))


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Return a method by its name, with options.

    Args:
        name: name of the method.
        options: options of the method by key or alias. An option with several texts also takes a
            single one, or numbers.

    Raises:
        InputError: the method is unknown, it has no such option, or a value is out of range.
    """
    cls = get(name)
    options = declarations.canonical(options_of(cls), options or {})
    names = {item.key: item.name for item in options_of(cls)}
    for key in (key for key in options if key not in names):
        owners = [
            other
            for other, owner in registry().items()
            if any(key in item.keys for item in options_of(owner))
        ]
        flag = "--" + key.replace("_", "-")
        raise InputError(
            f"{flag} is not an option of the method {name!r}",
            f"pass --method {' or '.join(owners)}"
            if owners
            else nearest(key, tuple(sorted(names))),
        )
    several = {item.key for item in options_of(cls) if item.kind == tuple[str, ...]}
    values: dict[str, Any] = {
        names[key]: texts(value) if key in several else value
        for key, value in options.items()
        if value is not None
    }
    return cls(cls.Config(**values))
