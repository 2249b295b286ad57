"""The registry of network families: everything that depends on the kind of a spec.

A spec names a network as text, such as ``resnet20``, ``mlp:784-300-100-10`` or
``timm:vit_tiny_patch16_224``. The family of a spec completes it, builds the network and knows what
is special about its networks. A new family is a :class:`ModelFamily`, or a class derived from it,
that is entered in :data:`FAMILIES`; nothing else in lpss tests what a spec begins with.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lpss_cli.errors import InputError, nearest
from lpss_cli.models.checks import image_shape, size_text
from lpss_cli.models.info import ImagePreprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

# The first layer of an MLP for larger inputs than a 64x64 color image is nearly the whole network.
_LARGEST_MLP_INPUT = 3 * 64 * 64


@dataclass(frozen=True)
class ModelFamily:
    """Networks whose specs are written and built in the same way.

    Attributes:
        names: specs that are complete as they stand.
        prefix: what all other specs begin with, such as ``timm:``; empty if there are none.
        usage: how the specs with this prefix are written, for help and messages.
        builder: ``module.function`` in ``lpss_cli.models``, called with
            ``(spec, input_shape, outputs)`` to create a network.
        library: the package that the networks come from; empty for lpss's own.
        extra: the extra of lpss that installs ``library``, if lpss does not require it anyway.
        runs_code: whether building a network runs code of the user. Such a spec is never followed
            when it was found in a checkpoint.
        has_fixed_size: whether a name determines the size of the network, so that a checkpoint
            cannot ask for more memory than that by its spec.
        has_template: whether a name determines the names and shapes of the tensors, up to the
            number of classes, channels and pixels.
        signatures: the file with the signatures of these networks, if they have one of their own;
            it is consulted only where no other network fits.
    """

    names: tuple[str, ...] = ()
    prefix: str = ""
    usage: str = ""
    builder: str = ""
    library: str = ""
    extra: str = ""
    runs_code: bool = False
    has_fixed_size: bool = False
    has_template: bool = False
    signatures: str = ""

    def matches(self, spec: str) -> bool:
        """Return whether a spec belongs to this family."""
        return spec in self.names or (bool(self.prefix) and spec.startswith(self.prefix))

    def complete(self, spec: str, input_shape: tuple[int, ...], outputs: int) -> str:
        """Return the spec with everything filled in that follows from the data.

        Raises:
            InputError: the spec is malformed or does not fit the data.
        """
        return spec

    def create(self, spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Create the network of a completed spec without trying it.

        Raises:
            InputError: there is no such network, its library is missing, or it does not take
                samples of this shape.
        """
        module, function = self.builder.split(".")
        builder = getattr(import_module(f"lpss_cli.models.{module}"), function)
        network: nn.Module = builder(spec, input_shape, outputs)
        return network

    def build(self, spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Create the network of a completed spec and check that it takes the data.

        Raises:
            InputError: see :meth:`create`; or the network fails on such samples.
        """
        return self.create(spec, input_shape, outputs)

    def sizes_of(self, spec: str) -> tuple[int, int] | None:
        """Return the numbers of inputs and outputs if the spec alone states them.

        Raises:
            InputError: the spec is malformed.
        """
        return None

    def spec_from_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Return the spec of a network with these shapes if they alone determine it."""
        return None

    def depends_on_image_size(self, spec: str) -> bool:
        """Return whether shapes of the network's tensors follow from the size of the images."""
        return True

    def auxiliary(self, spec: str | None = None) -> tuple[str, ...]:
        """Return prefixes of the tensors of auxiliary classifiers, which only training needs.

        Args:
            spec: the network; None for the auxiliary classifiers of all networks.
        """
        return ()

    def preprocessing(
        self, spec: str, sha256: str = "", side: int | None = None
    ) -> ImagePreprocessing | None:
        """Return how the library evaluates the published weights of a network, if it has any.

        Args:
            spec: a network that exists.
            sha256: hash of the checkpoint in hex; some published files are known by theirs.
            side: side of the images in pixels, if the shapes of the network determine it.
        """
        return None

    def is_published(self, spec: str) -> bool:
        """Return whether the library has trained weights for a network that exists."""
        return False

    def read_folder(self, folder: Path) -> dict[str, Tensor] | None:
        """Return the weights in a folder of the Hub if reading them takes the library.

        None means that the file of weights has the names of the network already.

        Raises:
            InputError: the library is missing, or the weights are not those of the network.
        """
        return None


class _Mlp(ModelFamily):
    """Multilayer perceptrons, ``mlp:INPUTS-HIDDEN-…-OUTPUTS``."""

    def complete(self, spec: str, input_shape: tuple[int, ...], outputs: int) -> str:
        """Fill in ``mlp:<inputs>-300-100-<outputs>``, or check that the ends fit the data."""
        inputs = prod(input_shape)
        if spec not in self.names:
            return _checked_mlp(spec, inputs, outputs)
        if inputs > _LARGEST_MLP_INPUT:
            raise InputError(
                f"inputs of {size_text(input_shape)} are {inputs} numbers, too many for the "
                f"default MLP (at most {_LARGEST_MLP_INPUT})",
                "name a network: --arch torchvision:resnet18",
            )
        return f"mlp:{inputs}-300-100-{outputs}"

    def sizes_of(self, spec: str) -> tuple[int, int] | None:
        """Return the first and the last width."""
        if spec in self.names:
            return None
        widths = mlp_widths(spec)
        return widths[0], widths[-1]

    def spec_from_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Read the widths off ``fc1.weight``, ``fc1.bias``, ``fc2.weight``, …."""
        layers = range(1, len(shapes) // 2 + 1)
        widths: list[int] = []
        for layer in layers:
            weight, bias = (shapes.get(f"fc{layer}.{part}", ()) for part in ("weight", "bias"))
            if len(weight) != 2 or 0 in weight or bias != weight[:1]:
                return None
            if widths and widths[-1] != weight[1]:
                return None
            widths = [*(widths or weight[1:]), weight[0]]
        if not widths or len(shapes) != 2 * len(layers):
            return None
        return f"mlp:{'-'.join(map(str, widths))}"


class _Library(ModelFamily):
    """Networks of a library, which are tried on one image when they are built."""

    def build(self, spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Create the network and try it, so that an impossible image size is found here."""
        from lpss_cli.models import libraries

        return libraries.build(spec, self.create, image_shape(spec, input_shape), outputs)

    def depends_on_image_size(self, spec: str) -> bool:
        """Return False: most libraries create a network for one image size, or for any."""
        return False


class _Torchvision(_Library):
    """Classifiers of torchvision, ``torchvision:NAME``."""

    def depends_on_image_size(self, spec: str) -> bool:
        """Return whether it is a vision transformer with a parameter for every patch."""
        from lpss_cli.models import libraries

        return libraries.depends_on_image_size(spec.removeprefix(self.prefix))

    def auxiliary(self, spec: str | None = None) -> tuple[str, ...]:
        """Return the prefixes of the auxiliary classifiers of GoogLeNet and Inception."""
        from lpss_cli.models.libraries import AUXILIARY

        if spec is None:
            return tuple(prefix for prefixes in AUXILIARY.values() for prefix in prefixes)
        return AUXILIARY.get(spec.removeprefix(self.prefix), ())

    def preprocessing(
        self, spec: str, sha256: str = "", side: int | None = None
    ) -> ImagePreprocessing | None:
        """Return the transforms of the published file, or those of the default weights."""
        from lpss_cli.models import libraries

        return libraries.torchvision_preprocessing(spec.removeprefix(self.prefix), sha256, side)


class _Timm(_Library):
    """Networks of timm, ``timm:NAME``."""

    def preprocessing(
        self, spec: str, sha256: str = "", side: int | None = None
    ) -> ImagePreprocessing | None:
        """Return the data configuration of the default weights."""
        from lpss_cli.models import libraries

        return libraries.timm_preprocessing(spec.removeprefix(self.prefix))

    def is_published(self, spec: str) -> bool:
        """Return whether timm has weights for the network."""
        from lpss_cli.models import libraries

        return libraries.is_published_by_timm(spec.removeprefix(self.prefix))


class _HuggingFace(ModelFamily):
    """Image classifiers of transformers, ``hf:FOLDER``."""

    def read_folder(self, folder: Path) -> dict[str, Tensor] | None:
        """Let the library rename the tensors of older files."""
        from lpss_cli.models import huggingface

        return huggingface.weights(folder)


class _UserCode(ModelFamily):
    """Functions of the user, ``file.py:factory`` or ``pkg.mod:factory``."""

    def matches(self, spec: str) -> bool:
        """Take every spec with a colon; the families with a prefix come first."""
        return ":" in spec


TIMM = _Timm(
    prefix="timm:",
    usage="timm:NAME",
    builder="libraries.create_timm",
    library="timm",
    extra="timm",
    has_fixed_size=True,
    has_template=True,
    signatures="signatures_timm.json",
)
TORCHVISION = _Torchvision(
    prefix="torchvision:",
    usage="torchvision:NAME",
    builder="libraries.create_torchvision",
    library="torchvision",
    has_fixed_size=True,
    has_template=True,
)
HUGGINGFACE = _HuggingFace(
    prefix="hf:",
    usage="hf:FOLDER",
    builder="huggingface.build",
    library="transformers",
    extra="hf",
)


def _own(builder: str, *names: str) -> ModelFamily:
    return ModelFamily(names, builder=builder, has_template=True)


#: Every family; the first one that matches a spec is its family.
FAMILIES: tuple[ModelFamily, ...] = (
    _Mlp(("mlp",), "mlp:", "mlp:A-B-C", "classic.build_mlp"),
    _own("classic.build_lenet", "lenet300", "lenet5"),
    _own("residual.build_wrn", "wrn12", "wrn18", "wrn22-2", "wrn22-4"),
    _own("residual.build_resnet", "resnet20", "resnet56"),
    _own("classic.build_vgg", "vgg11", "vgg13", "vgg16", "vgg19"),
    _own("classic.build_conv", "conv2", "conv4", "conv6"),
    TORCHVISION,
    TIMM,
    HUGGINGFACE,
    _UserCode(usage="file.py:factory", builder="factory.build", runs_code=True),
)
#: The names of lpss's own networks.
KNOWN: tuple[str, ...] = tuple(name for family in FAMILIES for name in family.names)


def usages() -> list[str]:
    """Return how specs are written that are not among :data:`KNOWN`."""
    return [family.usage for family in FAMILIES if family.usage]


def find_family(spec: str) -> ModelFamily | None:
    """Return the family of a spec; None if it belongs to none."""
    return next((family for family in FAMILIES if family.matches(spec)), None)


def family_of(spec: str) -> ModelFamily:
    """Return the family of a spec.

    Raises:
        InputError: it belongs to none.
    """
    family = find_family(spec)
    if family is not None:
        return family
    message = f"unknown network {spec!r}"
    if Path(spec).suffix == ".py":
        raise InputError(message, f"name the function that makes it too: {spec}:FUNCTION")
    raise InputError(message, f"{nearest(spec, KNOWN)}, {', '.join(usages())}")


def runs_code(spec: str) -> bool:
    """Return whether building a network runs the user's code: ``file.py:factory``.

    Callers refuse such a spec when it comes out of a checkpoint.
    """
    family = find_family(spec)
    return family is not None and family.runs_code


def sizes_of(arch: str | None) -> tuple[int, int] | None:
    """Return the numbers of inputs and outputs if the spec as typed states them.

    Raises:
        InputError: the spec is malformed.
    """
    family = find_family(arch) if arch is not None else None
    return family.sizes_of(arch) if family is not None and arch is not None else None


def resolve(arch: str | None, input_shape: tuple[int, ...], outputs: int) -> str:
    """Complete the spec of a network for the data.

    Args:
        arch: the spec as typed; None and ``mlp`` stand for ``mlp:<inputs>-300-100-<outputs>``.
        input_shape: shape of one sample.
        outputs: width of the last layer.

    Raises:
        InputError: the name is unknown; an MLP's ends do not fit the data; there is no ``arch``
            for inputs that are too large for an MLP.
    """
    spec = "mlp" if arch is None else arch
    return family_of(spec).complete(spec, input_shape, outputs)


def build(arch: str | None, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a freshly initialized network, drawn from torch's global random generator.

    Args:
        arch: a spec, completed or as typed (see :func:`resolve`).
        input_shape: shape of one sample: ``(channels, height, width)`` or ``(features,)``.
        outputs: width of the last layer: number of classes or of regression targets.

    Returns:
        A module in training mode that maps ``(batch, *input_shape)`` to ``(batch, outputs)``;
        for a factory of the user, whatever it returned.

    Raises:
        InputError: the name is unknown, the network does not take samples of this shape, or a
            factory fails.
    """
    spec = resolve(arch, input_shape, outputs)
    return family_of(spec).build(spec, input_shape, outputs)


def mlp_widths(spec: str) -> list[int]:
    """Return ``[784, 300, 100, 10]`` for ``mlp:784-300-100-10``.

    Raises:
        InputError: there are fewer than two widths, or one is not a positive whole number.
    """
    parts = spec.removeprefix("mlp:").split("-")
    # isdecimal accepts the digits of other scripts as well; isascii keeps specs unambiguous.
    positive = all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts)
    if len(parts) < 2 or not positive:
        raise InputError(
            f"{spec!r} is not a list of layer widths",
            "write the widths with dashes, inputs first: mlp:784-300-100-10",
        )
    return [int(part) for part in parts]


def _checked_mlp(spec: str, inputs: int, outputs: int) -> str:
    widths = mlp_widths(spec)
    faults = []
    if widths[0] != inputs:
        faults.append(f"{widths[0]} inputs where the data has {inputs}")
    if widths[-1] != outputs:
        faults.append(f"{widths[-1]} outputs where the data has {outputs}")
    fitting = "-".join(map(str, [inputs, *widths[1:-1], outputs]))
    if faults:
        raise InputError(f"{spec} has {' and '.join(faults)}", f"write --arch mlp:{fitting}")
    return f"mlp:{fitting}"  # in one spelling: mlp:064-… becomes mlp:64-…
