"""A recipe for a network: what ``lpss sparsify`` would do with it, written down to be changed.

What is written is what was typed, and the choices that follow from the network and the data. What
is left open stands in comments, with the values that it has by default.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lpss_cli import given, recipes
from lpss_cli.data.spec import DATA_DIR_VARIABLE
from lpss_cli.errors import InputError, RunError
from lpss_cli.files import output, replacing
from lpss_cli.loading import read
from lpss_cli.method import Method, make
from lpss_cli.planning import Plan, plan
from lpss_cli.request import Request, check
from lpss_cli.resolving import SPARSIFY_BUDGET, SPARSITY, restore, settings_for, sparsity_of
from lpss_cli.starting import Settings
from lpss_cli.targets import zero_count
from lpss_cli.weights import Weight, trainable

_STAGE = "sparsify"


@dataclass(frozen=True)
class Draft:
    """A recipe that was written.

    Attributes:
        path: of the recipe.
        command: that runs it.
        options: what it says, by name.
    """

    path: Path
    command: str
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"recipe": str(self.path), "command": self.command, "options": dict(self.options)}


@dataclass(frozen=True)
class _Layer:
    """One prunable weight in the list; ``zeros`` is the part that would go, None if skipped."""

    name: str
    shape: tuple[int, ...]
    weights: int
    fan_in: int | None
    zeros: float | None


def draft(
    path: Path,
    request: Request,
    typed: Mapping[str, Any],
    note: Callable[[str], None] = lambda _: None,
) -> Draft:
    """Write a recipe for a checkpoint to ``request.out``; read back, it is checked as any recipe.

    The network and its data are loaded, so that what is written runs as it is.

    Args:
        path: the checkpoint.
        request: of sparsifying it.
        typed: the options that the request was made of.
        note: told what was found out.

    Raises:
        InputError: whatever ``lpss sparsify`` would refuse before any training; the recipe exists
            already, or its name does not end in ``.toml``.
    """
    check(request)
    if request.out.suffix != ".toml":
        raise InputError(f"{request.out} is no name of a recipe", "let --out end in .toml")
    method = make(request.method or "lpss", request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for text in checkpoint.notes:
        note(text)
    with output(request.out, force=request.force):
        model, arch, data = restore(checkpoint, request, note)
        weights = trainable(model)
        sparsity = sparsity_of(request, weights, SPARSITY)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET)
        planned = plan(
            arch,
            weights,
            sparsity=sparsity,
            options={"ranking": method.config.ranking},
            layers=request.layer,
            skip=request.skip,
        )
        # Of its own artefacts lpss knows the data; a name that is not theirs would lose the rest.
        own = (checkpoint.meta.get("data") or {}).get("name")
        chosen = _chosen(arch, request.data or own, method, settings)
        if request.target_drop is not None:
            chosen["sparsity"] = None  # it is to be found
        options = {k: v for k, v in chosen.items() if v is not None} | _given(typed)
        command = _command(path, request)
        layers = _layers(weights, planned)
        text = "\n".join(_text(path, command, method, options, layers, len(data.train))) + "\n"
        return _write(request, text, command, options)


def _chosen(arch: str, data: str | None, method: Method, settings: Settings) -> dict[str, Any]:
    return {
        "arch": arch,
        "data": data,
        "method": method.name,
        "sparsity": settings.sparsity,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }


def _given(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed; a folder that the environment names is none of them."""
    found = given.check({k: v for k, v in typed.items() if v != []})
    if found.get("data_dir") == os.environ.get(DATA_DIR_VARIABLE):
        found.pop("data_dir", None)
    return found


def _command(path: Path, request: Request) -> str:
    words = ["lpss", _STAGE, str(path), "--recipe", str(request.out)]
    return shlex.join(words + ["--trust-pickle"] * request.trust_pickle)


def _write(request: Request, text: str, command: str, options: Mapping[str, Any]) -> Draft:
    """Write the text if it is a recipe that says what was meant."""
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8
        raise InputError(
            f"{request.out} would hold a name that is no text", "rename the file, or use a link"
        ) from None
    said = recipes.loads(request.out, content).options(_STAGE)
    if said != given.check(options):
        raise RunError(
            f"{request.out} would not say what was asked for", "this is a defect; please report it"
        )
    with replacing(request.out) as temporary:
        temporary.write_bytes(content)
    return Draft(request.out, command, said)


def _text(
    path: Path,
    command: str,
    method: Method,
    options: Mapping[str, Any],
    layers: Sequence[_Layer],
    examples: int,
) -> Iterator[str]:
    total = sum(layer.weights for layer in layers if layer.zeros is not None)
    rest = dict(options)

    def option(name: str) -> str:
        return f"{name} = {_toml(rest.pop(name))}"

    yield f"# A recipe for {_shown(str(path))}: it runs as it is, and every line may be changed."
    yield "#"
    yield f"#     {_shown(command)}"
    yield "#"
    yield "# What is typed beside it wins. A line that begins with # is a choice left to lpss."
    yield f"title = {_toml(f'{path.name}, {method.name}')}"
    yield ""
    yield f"[{_STAGE}]"
    yield option("arch")
    if "data" in rest:
        yield f"# {examples:,} examples to learn from."
        yield option("data")
    yield ""
    if "sparsity" in rest:
        zeros = zero_count(total, rest["sparsity"])
        yield f"# Zeros of all {total:,} prunable weights, here {zeros:,}: 0.9, '90%' or '10x'."
        yield option("sparsity")
    else:
        yield f"# Points of the metric that may be lost: of {total:,} weights as many become zero."
        yield option("target_drop")
    yield "# Passes over the examples, and examples a step."
    yield option("epochs")
    yield option("batch_size")
    yield option("seed")
    yield ""
    yield from _layer_lines(layers)
    for name, example in (("skip", layers[-1].name), ("layer", f"{layers[0].name}=0.5")):
        yield option(name) if name in rest else f"# {name} = {_toml([example])}"
    yield ""
    yield f"# How to become sparse: lpss sparsify --help lists all methods. {method.paper}"
    yield option("method")
    yield from _method_lines(method, rest)
    for name in list(rest):
        yield option(name)


def _layers(weights: Mapping[str, Weight], planned: Plan) -> list[_Layer]:
    kept = {layer.name: layer.kept for layer in planned.layers}
    return [
        _Layer(
            name,
            tuple(weight.tensor.shape),
            weight.tensor.numel(),
            weight.fan_in,
            1 - kept[name] / weight.tensor.numel() if name in kept else None,
        )
        for name, weight in weights.items()
    ]


def _layer_lines(layers: Sequence[_Layer]) -> Iterator[str]:
    """List the weights with their sizes: what patterns of ``skip``, ``layer``, ``p`` match."""
    yield "# The weights; patterns are shell globs on their names. The zeros are what the ranking"
    yield "# makes of the weights as they are now."
    rows = [("name", "shape", "weights", "fan-in", "zeros")]
    rows += [
        (
            _shown(layer.name),
            "x".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            "-" if layer.fan_in is None else f"{layer.fan_in:,}",
            "-" if layer.zeros is None else f"{layer.zeros:.1%}",
        )
        for layer in layers
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        name, shape, *numbers = (
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"#   {'  '.join((name, shape, *numbers))}".rstrip()
    yield "# skip: layers that stay dense. layer: a sparsity of a layer's own; the others share"
    yield "# what the whole leaves."


def _method_lines(method: Method, rest: dict[str, Any]) -> Iterator[str]:
    """List the method's options: those that were given, the others with their defaults."""
    defaults = asdict(type(method).Config())
    for field in fields(type(method).Config):
        name, choices = field.name, field.metadata["choices"]
        among = f": {', '.join(choices)}" if len(choices) > 1 else ""
        text = f"{field.metadata['help']}{among}"
        if name in rest:
            yield f"# {text}"
            yield f"{name} = {_toml(rest.pop(name))}"
        else:
            default = defaults[name]
            value = "" if default in (None, ()) else f" {_toml(default)}"
            yield f"# {name} ={value}  # {text}"


def _toml(value: Any) -> str:
    """Spell a value as TOML does, whose texts are those of JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _shown(text: str) -> str:
    """Make a text from a file fit for a comment: on one line, whatever it holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
