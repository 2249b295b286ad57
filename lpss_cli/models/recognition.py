"""Which network a bare state_dict is of: by its names and shapes, among all known networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lpss_cli.errors import InputError
from lpss_cli.models import libraries
from lpss_cli.models.signatures import (
    Fit,
    Shapes,
    Signature,
    Template,
    hash_of_shapes,
    needed,
    sign,
    table,
    timm_table,
)
from lpss_cli.utils.arrays import TensorSpec

# The nearest networks that a refusal lists, of how many that are built for it, and how many
# differences of each; those with so many times the differences of the first are not near.
_NEAREST, _TRIED, _NAMED, _FARTHER = 3, 6, 3, 10
# With fewer entries, and common names, it may well be another network.
_FEW = 20
# Networks that fit as well as the first one, and are listed.
_LISTED = 12


@dataclass(frozen=True)
class Near:
    """A network that a state_dict is nearly of, and what differs, entry by entry."""

    arch: str
    differences: list[str]


@dataclass(frozen=True)
class Recognised:
    """What a state_dict may be.

    Attributes:
        shapes: of its entries that were compared, by name.
        fits: networks that every name and shape fits; the first is the simplest choice.
        near: others, the nearest first; looked for only where nothing fits.
    """

    shapes: Shapes
    fits: tuple[Fit, ...]
    near: tuple[Near, ...] = ()

    def note(self) -> str:
        """Say what was found, how sure it is, and how to choose otherwise."""
        first, *others = self.fits
        facts = [f"all {len(self.shapes)} names and shapes fit", plural(first.outputs, "output")]
        if first.channels:
            facts.append(f"images of {plural(first.channels, 'channel')}")
        if first.side:
            facts.append(f"{first.side}x{first.side} pixels")
        text = f"recognised as {first.arch}: {', '.join(facts)}"
        if others:
            listed = _some([fit.arch for fit in others], _LISTED)
            text += f"; as well as {listed}, --arch chooses"
        if len(self.shapes) < _FEW:
            text += "; names and shapes say nothing of activations: its accuracy will tell"
        return text

    def refusal(self, path: object) -> InputError:
        """Return the error for a file that nothing fits."""
        if self.near:
            listed = "; ".join(f"{near.arch} ({_some(near.differences)})" for near in self.near)
            why = f"nearest: {listed}"
        else:
            why = f"it holds {_some([f'{name} {shape}' for name, shape in self.shapes.items()])}"
        return InputError(
            f"{path} is no network that lpss knows; {why}",
            "pass --arch file.py:factory, a function that makes the network",
        )


def recognise(state: Mapping[str, TensorSpec], *, explain: bool = True) -> Recognised:
    """Find the networks that a state_dict is of.

    The names choose the candidates from a table, so that few networks have to be built, and these
    without memory. What is free to differ is in :class:`~lpss_cli.models.signatures.Template`.

    Args:
        state: of a bare network, without wrappers' prefixes.
        explain: look for the nearest networks where nothing fits; takes a few seconds.
    """
    shapes = libraries.without_auxiliary("", shapes_of(state))
    own = sign("", shapes)
    fits = [fit for fit in (_mlp(shapes),) if fit]
    same = [known for known in table() if known.hash == own.hash]
    fits += [fit for known in same if (fit := fit_of(known.arch, state))]
    if not fits and libraries.is_installed("timm"):
        fits = _of_timm(state)
    if fits:
        return Recognised(shapes, tuple(fits))
    shapes = shapes_of(state)
    return Recognised(shapes, (), _nearest(own, shapes) if explain else ())


def _of_timm(state: Mapping[str, TensorSpec]) -> list[Fit]:
    """Return how a state_dict fits networks of timm, the most usual first.

    Several networks of the same shapes differ in what has no weights: activations, padding.
    """
    shapes = shapes_of(state)
    own = sign("", shapes)
    alike = [
        known.arch
        for known in timm_table()
        if known.hash == own.hash and known.shapes == hash_of_shapes(shapes, known.free)
    ]
    fits = [fit for arch in alike if (fit := _compared(arch, shapes))]
    return sorted(
        fits, key=lambda fit: (not libraries.is_published(fit.arch), len(fit.arch), fit.arch)
    )


def fit_of(arch: str, state: Mapping[str, TensorSpec]) -> Fit | None:
    """Return how a state_dict fits a network by name; None where it does not.

    Networks of other people's code have no template: they fit by being built.
    """
    shapes = shapes_of(state)
    if arch.startswith("mlp"):
        return _mlp(shapes)
    if not arch.startswith("timm:") and all(known.arch != arch for known in table()):
        return None
    return _compared(arch, libraries.without_auxiliary(arch, shapes))


def _compared(arch: str, shapes: Shapes) -> Fit | None:
    try:
        return _template(arch).compare(shapes)[0]
    except InputError:  # an older library, which does not have it
        return None


def _template(arch: str) -> Template:
    from lpss_cli.models.signatures import template  # builds the network, with PyTorch

    return template(arch)


def shapes_of(state: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries that a network cannot do without."""
    return {name: tuple(state[name].shape) for name in needed(state)}


def _mlp(shapes: Shapes) -> Fit | None:
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
    return Fit(f"mlp:{'-'.join(map(str, widths))}", widths[-1])


def _nearest(own: Signature, shapes: Shapes) -> tuple[Near, ...]:
    """Compare with the few networks whose topmost modules are most alike."""
    alike = sorted(table(), key=own.likeness, reverse=True)
    found = []
    for known in [k for k in alike if own.likeness(k)[0] > 0][:_TRIED]:
        try:
            compared = _template(known.arch)
        except InputError:  # an older torchvision, which does not have it
            continue
        _, differences = compared.compare(libraries.without_auxiliary(known.arch, shapes))
        # With no name in common it is not near at all.
        if len(differences) < len(shapes) + len(compared.shapes):
            found.append(Near(known.arch, differences))
    found.sort(key=lambda near: len(near.differences))
    limit = _FARTHER * len(found[0].differences) if found else 0
    return tuple(near for near in found[:_NEAREST] if len(near.differences) <= limit)


def _some(items: list[str], named: int = _NAMED) -> str:
    more = len(items) - named
    return ", ".join(items[:named]) + (f" and {more} more" if more > 0 else "")


def plural(count: int, word: str) -> str:
    """Return ``1 output``, ``2 outputs`` for words that take an s."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
