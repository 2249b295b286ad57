"""A recipe for a network: what ``lpss sparsify`` would do with it, written down to be changed.

What is written is what was typed, and the choices that follow from the network and the data.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data.spec import DATA_DIR_VARIABLE
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs import config, recipes
from lpss_cli.jobs.config import Request, check
from lpss_cli.jobs.plan import Plan, plan
from lpss_cli.jobs.resolve import SPARSIFY_BUDGET, SPARSITY, restore, settings_for, sparsity_of
from lpss_cli.sparsity.prunable import Weight, trainable_weights
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training.method import Method, make, options_of
from lpss_cli.training.setup import Settings
from lpss_cli.utils.files import atomic_write, reserve_output


# MERGED: A recipe as a text that runs as it is and says what may be changed.
# MERGED: Options that were chosen stand as they are. What is left open stands in comments, with
# MERGED: the values
# MERGED: that it has by default.
@dataclass(frozen=True)
class _Layer:
    """One prunable weight in the list; ``zeros`` is the part that would go, None if skipped."""

    name: str
    shape: tuple[int, ...]
    weights: int
    fan_in: int | None
    zeros: float | None


def commented(
    source: Path,
    command: str,
    method: Method,
    options: Mapping[str, Any],
    weights: Mapping[str, Weight],
    planned: Plan,
    examples: int,
) -> str:
    """Write out a recipe of ``lpss sparsify``.

    Args:
        source: the checkpoint, for the title.
        command: that runs the recipe.
        method: how the network becomes sparse.
        options: by name; ``arch``, ``epochs``, ``batch_size``, ``seed``, ``method`` and one of
            ``sparsity`` and ``target_drop`` are among them.
        weights: name → prunable weight of the network, in layer order.
        planned: what becomes of them.
        examples: to learn from.
    """
    layers = _layers(weights, planned)
    rest = dict(options)
    lines = [
        f"# A recipe for {_shown(str(source))}: it runs as it is, and every line may be changed.",
        "#",
        f"#     {_shown(command)}",
        "#",
        "# What is typed beside it wins. A line that begins with # is a choice left to lpss.",
        f"title = {_toml(f'{source.name}, {method.name}')}",
        "",
        "[sparsify]",
        *_network(rest, examples),
        "",
        *_budget(rest, sum(layer.weights for layer in layers if layer.zeros is not None)),
        "",
        *_list(layers),
        *_patterns(rest, layers),
        "",
        f"# How to become sparse: lpss sparsify --help lists all methods. {method.paper}",
        _taken(rest, "method"),
        *_of_method(method, rest),
        *(_taken(rest, name) for name in list(rest)),
    ]
    return "\n".join(lines) + "\n"


def _taken(rest: dict[str, Any], name: str) -> str:
    """Write the line of an option, and take it out of the rest."""
    return f"{name} = {_toml(rest.pop(name))}"


def _network(rest: dict[str, Any], examples: int) -> Iterator[str]:
    yield _taken(rest, "arch")
    if "data" in rest:
        yield f"# {examples:,} examples to learn from."
        yield _taken(rest, "data")


def _budget(rest: dict[str, Any], total: int) -> Iterator[str]:
    if "sparsity" in rest:
        zeros = zero_count(total, rest["sparsity"])
        yield f"# Zeros of all {total:,} prunable weights, here {zeros:,}: 0.9, '90%' or '10x'."
        yield _taken(rest, "sparsity")
    else:
        yield f"# Points of the metric that may be lost: of {total:,} weights as many become zero."
        yield _taken(rest, "target_drop")
    yield "# Passes over the examples, and examples a step."
    for name in ("epochs", "batch_size", "seed"):
        yield _taken(rest, name)


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


def _list(layers: Sequence[_Layer]) -> Iterator[str]:
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


def _patterns(rest: dict[str, Any], layers: Sequence[_Layer]) -> Iterator[str]:
    yield "# skip: layers that stay dense. layer: a sparsity of a layer's own; the others share"
    yield "# what the whole leaves."
    for name, example in (("skip", layers[-1].name), ("layer", f"{layers[0].name}=0.5")):
        yield _taken(rest, name) if name in rest else f"# {name} = {_toml([example])}"


def _of_method(method: Method, rest: dict[str, Any]) -> Iterator[str]:
    """List the method's options: those that were given, the others with their defaults."""
    defaults = asdict(type(method).Config())
    for field in options_of(type(method)):
        name, choices = field.name, field.metadata["choices"]
        among = f": {', '.join(choices)}" if len(choices) > 1 else ""
        text = f"{field.metadata['help']}{among}"
        if name in rest:
            yield f"# {text}"
            yield _taken(rest, name)
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
    with reserve_output(request.out, force=request.force):
        model, arch, data = restore(checkpoint, request, note)
        weights = trainable_weights(model)
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
        options = _chosen(request, checkpoint, arch, method, settings) | _given(typed)
        command = _command(path, request)
        text = commented(path, command, method, options, weights, planned, len(data.train))
        return _write(request, text, command, options)


def _chosen(
    request: Request, checkpoint: Checkpoint, arch: str, method: Method, settings: Settings
) -> dict[str, Any]:
    """Return what would be done, by the names of the options."""
    # Of its own artefacts lpss knows the data; a name that is not theirs would lose the rest.
    own = (checkpoint.meta.get("data") or {}).get("name")
    chosen = {
        "arch": arch,
        "data": request.data or own,
        "method": method.name,
        "sparsity": settings.sparsity if request.target_drop is None else None,  # to be found
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _given(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed; a folder that the environment names is none of them."""
    found = config.check_options({k: v for k, v in typed.items() if v != []})
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
    if said != config.check_options(options):
        raise RunError(
            f"{request.out} would not say what was asked for", "this is a defect; please report it"
        )
    with atomic_write(request.out) as temporary:
        temporary.write_bytes(content)
    return Draft(request.out, command, said)
