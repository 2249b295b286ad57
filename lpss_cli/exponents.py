"""Which layer gets which exponent p: one value, values by pattern, a list, or ``auto``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lpss_cli.errors import InputError
from lpss_cli.patterns import resolve

AUTO = "auto"


def check(items: Sequence[str], parse: Callable[[str], float]) -> None:
    """Refuse impossible values at once; patterns and the length of a list need the network.

    Raises:
        InputError: a value is no number, or ``parse`` refuses it.
    """
    for item in items:
        _values(item.rpartition("=")[2], parse)


def assign(
    items: Sequence[str],
    names: Sequence[str],
    parse: Callable[[str], float],
    choose: Callable[[str], float],
) -> dict[str, float]:
    """Return p for every weight on a sphere.

    Args:
        items: ``VALUE`` for all, ``PATTERN=VALUE``, or a list ``1.2*4,1.07,…`` in the order of
            ``names``; VALUE is a number or ``auto``; later items win; without any, ``auto``.
        names: the weights on the sphere, in layer order.
        parse: text → p; raises ValueError or InputError.
        choose: name → the p that ``auto`` means there.

    Raises:
        InputError: a pattern matches nothing, a value is no p, or a list has another length.
    """
    values: dict[str, float | None] = dict.fromkeys(names)
    for item in items:
        pattern, _, text = item.rpartition("=")
        given = _values(text, parse)
        targets = resolve([pattern], names, "--p") if pattern else list(names)
        if len(given) == 1:
            given = given * len(targets)
        if len(given) != len(targets):
            raise InputError(
                f"--p lists {len(given)} values for {len(targets)} weights on the sphere",
                f"give one for each of: {', '.join(targets)}",
            )
        values |= dict(zip(targets, given, strict=True))
    return {name: choose(name) if p is None else p for name, p in values.items()}


def _values(text: str, parse: Callable[[str], float]) -> list[float | None]:
    """Read ``auto``, ``1.2`` or ``1.2*4,1.07`` (four times 1.2, then 1.07); None is auto."""
    values: list[float | None] = []
    for part in text.split(","):
        value, star, times = part.strip().partition("*")
        try:
            count = int(times) if star else 1
            if count < 1:
                raise ValueError
            values += [None if value.strip() == AUTO else parse(value)] * count
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"--p {text!r} is not understood",
                "write --p 1.15, --p auto, --p 'fc*=1.15', or a list --p '1.2*4,1.07*13'",
            ) from None
    return values


def on_sphere(fan_ins: Mapping[str, int | None], off: Sequence[str]) -> list[str]:
    """Return the weights that go on spheres, in layer order.

    Args:
        fan_ins: name → fan-in in layer order; None where rows are no simple slices.
        off: patterns of weights kept off.

    Raises:
        InputError: a pattern matches nothing.
    """
    left = resolve(off, list(fan_ins), "--off-sphere")
    # A row of one entry has no direction to move in.
    return [name for name, n in fan_ins.items() if name not in left and n is not None and n > 1]
