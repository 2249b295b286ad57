"""Recognizing the network of a bare state_dict by its names and shapes, among all known networks.

Importing this module does not import torch; it is imported where a network has to be built for the
comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lpss_cli.errors import InputError
from lpss_cli.models import libraries
from lpss_cli.models.checks import plural
from lpss_cli.models.families import FAMILIES, ModelFamily, find_family
from lpss_cli.models.info import Fit, needed
from lpss_cli.models.signatures import (
    Shapes,
    Signature,
    Template,
    hash_of_shapes,
    library_table,
    sign,
    table,
    without,
)
from lpss_cli.utils.arrays import TensorSpec

# A refusal lists this many of the nearest networks, out of how many that are built for it, with
# this many differences each; those with so many times the differences of the first are left out.
_NEAREST, _BUILT, _NAMED, _FARTHER = 3, 6, 3, 10
# With fewer entries than this, names are so common that it may well be another network.
_FEW = 20
# Number of networks listed that fit as well as the first one.
_LISTED = 12


@dataclass(frozen=True)
class Near:
    """A network that a state_dict almost fits, and the differences, entry by entry."""

    arch: str
    differences: list[str]


@dataclass(frozen=True)
class Recognition:
    """What a state_dict may be.

    Attributes:
        shapes: of the entries that were compared, by name.
        fits: networks whose names and shapes all fit; the first one is the simplest choice.
        near: other networks, the nearest first; only looked for where nothing fits.
    """

    shapes: Shapes
    fits: tuple[Fit, ...]
    near: tuple[Near, ...] = ()

    def note(self) -> str:
        """Say what was recognized, how certain that is, and how to choose another network."""
        first, *others = self.fits
        facts = [f"all {len(self.shapes)} names and shapes fit", plural(first.outputs, "output")]
        if first.channels:
            facts.append(f"images of {plural(first.channels, 'channel')}")
        if first.side:
            facts.append(f"{first.side}x{first.side} pixels")
        text = f"recognized as {first.arch}: {', '.join(facts)}"
        if others:
            listed = _some([fit.arch for fit in others], _LISTED)
            text += f"; {listed} would fit as well, --arch chooses"
        if len(self.shapes) < _FEW:
            text += "; names and shapes do not show activations: check its accuracy"
        return text

    def refusal(self, path: object) -> InputError:
        """Return the error for a file that nothing fits."""
        if self.near:
            listed = "; ".join(f"{near.arch} ({_some(near.differences)})" for near in self.near)
            why = f"nearest: {listed}"
        else:
            why = f"it holds {_some([f'{name} {shape}' for name, shape in self.shapes.items()])}"
        return InputError(
            f"{path} is not a network that lpss knows; {why}",
            "pass --arch file.py:factory, a function that makes the network",
        )


def recognize(state: Mapping[str, TensorSpec], *, explain: bool = True) -> Recognition:
    """Find the networks that a state_dict fits.

    The names select the candidates from a table, so that few networks have to be built, and these
    without memory. What may differ is in :class:`~lpss_cli.models.signatures.Template`.

    Args:
        state: of a bare network, without prefixes of wrappers.
        explain: look for the nearest networks if nothing fits, which takes a few seconds.
    """
    every = shapes_of(state)
    auxiliary = tuple(prefix for family in FAMILIES for prefix in family.auxiliary())
    shapes = without(every, auxiliary)
    signature = sign("", shapes)
    fits = [fit for family in FAMILIES if (fit := _from_shapes(family, shapes))]
    candidates = [known.arch for known in table() if known.hash == signature.hash]
    fits += [fit for arch in candidates if (fit := _compare(arch, every))]
    if fits:
        return Recognition(shapes, tuple(fits))
    for family in FAMILIES:
        if family.signatures and libraries.is_installed(family.library):
            fits += _of_library(family, every)
    near = _nearest(signature, every) if explain and not fits else ()
    return Recognition(shapes if fits else every, tuple(fits), near)


def fit_of(arch: str, state: Mapping[str, TensorSpec]) -> Fit | None:
    """Return how a state_dict fits the network that a spec names; None if it does not.

    The user's own code and folders have no template: whether they fit shows when they are built.
    """
    family = find_family(arch)
    if family is None:
        return None
    shapes = shapes_of(state)
    return _compare(arch, shapes) if family.has_template else _from_shapes(family, shapes)


def shapes_of(state: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries that a network cannot do without."""
    return {name: tuple(state[name].shape) for name in needed(state)}


def _from_shapes(family: ModelFamily, shapes: Shapes) -> Fit | None:
    """Return the fit if the shapes alone determine a network of the family."""
    spec = family.spec_from_shapes(shapes)
    sizes = None if spec is None else family.sizes_of(spec)
    return None if spec is None or sizes is None else Fit(spec, sizes[1])


def _of_library(family: ModelFamily, shapes: Shapes) -> list[Fit]:
    """Return how shapes fit the networks in a library's own table, the most common first.

    Networks of the same shapes differ in what has no weights: activations, padding.
    """
    signature = sign("", shapes)
    alike = [
        known.arch
        for known in library_table(family.signatures)
        if known.hash == signature.hash and known.shapes == hash_of_shapes(shapes, known.free)
    ]
    fits = [fit for arch in alike if (fit := _compare(arch, shapes))]
    return sorted(
        fits, key=lambda fit: (not family.is_published(fit.arch), len(fit.arch), fit.arch)
    )


def _compare(arch: str, shapes: Shapes) -> Fit | None:
    try:
        return _template(arch).compare(shapes)[0]
    except InputError:  # an older version of the library, which does not have the network
        return None


def _template(arch: str) -> Template:
    from lpss_cli.models.templates import template  # creates the network, with PyTorch

    return template(arch)


def _nearest(signature: Signature, shapes: Shapes) -> tuple[Near, ...]:
    """Compare with the few networks whose topmost modules are the most similar."""
    alike = sorted(table(), key=signature.similarity, reverse=True)
    found = []
    for known in [k for k in alike if signature.similarity(k)[0] > 0][:_BUILT]:
        try:
            compared = _template(known.arch)
        except InputError:  # an older version of torchvision, which does not have the network
            continue
        _, differences = compared.compare(shapes)
        # A network without a name in common is not near at all.
        names = without(shapes, compared.auxiliary)
        if len(differences) < len(names) + len(compared.shapes):
            found.append(Near(known.arch, differences))
    found.sort(key=lambda near: len(near.differences))
    limit = _FARTHER * len(found[0].differences) if found else 0
    return tuple(near for near in found[:_NEAREST] if len(near.differences) <= limit)


def _some(items: list[str], named: int = _NAMED) -> str:
    more = len(items) - named
    return ", ".join(items[:named]) + (f" and {more} more" if more > 0 else "")
