"""The one interface of a sparsification method, and the registry of those there are.

A method is one file in ``lpss_cli/methods`` with one subclass of ``Method``. Its command-line
flags, its help and its contract tests follow from the class. So that a command's help is instant,
neither this module nor a method's file imports torch at module level.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
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

    from lpss_cli.training.context import MethodContext


#: How weights of different layers compare when they are ranked; see ``masks.RANKINGS``.
RANKINGS = ("lamp", "balanced", "magnitude", "uniform", "erk")

#: The methods that are used where none is named: for sparse training, and for dense training.
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
    """How one run becomes sparse. Override what differs; the engine owns the rest.

    One step is, in this order: forward and backward → ``on_gradients`` (dense gradients) →
    gradients masked → optimizer step → masks enforced → ``on_weights`` → topology update. The
    engine ranks ``scores``, cuts to exact counts and makes the exact cut at ``config.end``.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    #: Shared options that mean nothing to this method: it has no such flags.
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
        own = cls.__dict__  # what is inherited has been declared
        layer_info.declare(own.get("layer_facts", ()), own.get("layer_columns", ()))
        if "name" in cls.__dict__:  # a nameless class is a base for others
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
            fan_ins: name → entries of one row, in layer order; None where rows are not simple
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
        # In the middle of the step, so that neither the first nor the last one is lost.
        return warmup_cosine((run.step + 0.5) / run.total_steps, self.config.warmup)

    def scores(self, run: MethodContext) -> Mapping[str, Tensor]:
        """Return the log-saliency of every prunable weight; -inf for one that stays zero."""
        from lpss_cli.sparsity.masks import log_magnitude

        return {name: log_magnitude(w) for name, w in run.weights.items()}

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity to cut to after this step; None leaves the masks alone.

        Asked after every step before the exact cut; ``run.due`` tells the steps of updates.
        """
        return None

    def on_prune(self, run: MethodContext) -> None:
        """See the masks that a cut has left, along the path or at its end: a place to rewind."""

    def on_gradients(self, run: MethodContext) -> bool:
        """See dense gradients before they are masked; False skips this optimizer step."""
        return True

    def on_weights(self, run: MethodContext) -> None:
        """See the weights after the step and its enforcement."""


@cache
def registry() -> dict[str, type[Method]]:
    """All methods by name: one from every module of ``lpss_cli.methods``."""
    package = importlib.import_module("lpss_cli.methods")
    for module in pkgutil.iter_modules(package.__path__):  # each of them registers its method
        importlib.import_module(f"lpss_cli.methods.{module.name}")
    return dict(sorted(Method.registry.items()))


def options_of(cls: type[Method]) -> list[Option]:
    """Return the options of a method: the fields of its Config, except those that it ignores."""
    declared = declarations.options(cls.Config)
    return [item for name, item in declared.items() if name not in cls.ignores]


def all_options() -> dict[str, Option]:
    """Return the options of all methods by key; an option of several methods is one of theirs.

    The options that all methods share are those of ``MethodConfig``.
    """
    found = dict(declarations.options(MethodConfig))
    for cls in registry().values():
        found = declarations.options(cls.Config) | found
    return {item.key: item for item in found.values()}


def get(name: str) -> type[Method]:
    """Return the method of that name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in registry():
        raise InputError(f"unknown method {name!r}", nearest(name, tuple(registry())))
    return registry()[name]


def aliases() -> dict[str, str]:
    """Return the aliases of the options of all methods, each with the key that it stands for."""
    return {alias: item.key for item in all_options().values() for alias in item.aliases}


def texts(value: float | str | Sequence[float | str]) -> tuple[str, ...]:
    """Return a number, a string or several of them as an option of several strings takes them."""
    return (str(value),) if isinstance(value, (int, float, str)) else tuple(map(str, value))


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its name and the options that were given.

    Args:
        name: of the method.
        options: by key or alias; None is the same as nothing. An option of several strings also
            takes one, and numbers.

    Raises:
        InputError: unknown method, an option it does not have, or a value out of range.
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
