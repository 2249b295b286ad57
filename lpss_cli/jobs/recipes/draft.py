"""Writes the recipe of a network: what ``lpss sparsify`` would do with it, ready to be changed.

Options that were chosen stand as they are: what was typed, and what follows from the network and
the data. What is left open stands in comments, with the values that it has by default.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table

from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data.spec import DATA_DIR_VARIABLE
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs import recipes
from lpss_cli.jobs.config import Request, check, read_options
from lpss_cli.jobs.plan import Plan, plan
from lpss_cli.jobs.resolve import restore, settings_for, sparsity_of
from lpss_cli.sparsity.prunable import Weight, trainable_weights
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training.method import Method, make, options_of
from lpss_cli.training.options import SPARSIFY_BUDGET, SPARSITY
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.utils.files import atomic_write, reserve_output

_STAGE = "sparsify"
_RECIPE = Path("recipe.toml")


@dataclass(frozen=True)
class Draft:
    """A recipe that was written.

    Attributes:
        path: The recipe.
        command: The command line that runs it.
        options: What it says, by key.
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
    """Write a recipe for a checkpoint, by default to ``recipe.toml``, and read it back.

    The network and its data are loaded, so that what is written runs as it is.

    Args:
        path: The checkpoint.
        request: How to sparsify it, and the file to write.
        typed: Options that the request was made of, by key.
        note: Told what was found out.

    Raises:
        InputError: Whatever ``lpss sparsify`` would refuse before any training; or the recipe
            exists already, or its name does not end in ``.toml``.
    """
    request = request.writing_to(_RECIPE)
    out = request.output
    check(request)
    if out.suffix != ".toml":
        raise InputError(f"{out} is not the name of a recipe", "let --out end in .toml")
    method = make(request.method_name(), request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for text in checkpoint.notes:
        note(text)
    with reserve_output(out, force=request.force):
        model, info, data = restore(checkpoint, request, note)
        weights = trainable_weights(model)
        sparsity = sparsity_of(request, weights, SPARSITY)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET)
        planned = plan(
            info.arch,
            weights,
            sparsity=sparsity,
            options={"ranking": method.config.ranking},
            layers=request.layers,
            skip=request.skip,
        )
        options = _chosen(request, checkpoint, info.arch, method, settings) | _typed(typed)
        command = _command(path, request)
        text = commented(path, command, method, options, weights, planned, len(data.train))
        return _write(out, text, command, options)


def _chosen(
    request: Request, checkpoint: Checkpoint, arch: str, method: Method, settings: TrainingSettings
) -> dict[str, Any]:
    """Return what would be done, by the keys of the options."""
    # The data of an lpss artifact are known; a name that is not theirs would lose the rest.
    stored = (checkpoint.meta.get("data") or {}).get("name")
    chosen = {
        "arch": arch,
        "data": request.data or stored,
        "method": method.name,
        # A search has yet to find the sparsity.
        "sparsity": settings.sparsity if request.target_drop is None else None,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _typed(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed; a folder that the environment names is not one."""
    options = read_options(typed)
    if options.get("data_dir") == os.environ.get(DATA_DIR_VARIABLE):
        options.pop("data_dir", None)
    return options


def _command(path: Path, request: Request) -> str:
    words = ["lpss", _STAGE, str(path), "--recipe", str(request.output)]
    return shlex.join(words + ["--trust-pickle"] * request.trust_pickle)


def _write(out: Path, text: str, command: str, options: Mapping[str, Any]) -> Draft:
    """Write the text if it is a recipe that says what was meant."""
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8
        raise InputError(
            f"{out} would hold a name that is not UTF-8", "rename the file, or use a link"
        ) from None
    read_back = recipes.loads(out, content).options(_STAGE)
    if read_back != read_options(options):
        raise RunError(
            f"{out} would not say what was asked for", "this is a defect; please report it"
        )
    with atomic_write(out) as temporary:
        temporary.write_bytes(content)
    return Draft(out, command, read_back)


class _Section:
    """The options of a recipe, while they are written.

    Args:
        options: What is to be written, by key.

    Attributes:
        table: What is written so far.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._left = dict(options)
        self.table: Table = tomlkit.table()

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def value(self, key: str) -> Any:
        """Return an option that is to be written."""
        return self._left[key]

    def write(self, *keys: str) -> None:
        """Write some options."""
        for key in keys:
            self.table.add(key, tomlkit.item(self._left.pop(key)))

    def write_rest(self) -> None:
        """Write the options that are left."""
        self.write(*list(self._left))

    def comment(self, *lines: str) -> None:
        """Write comments, a line each."""
        for line in lines:
            self.table.add(tomlkit.comment(line))

    def example(self, key: str, value: Any, text: str = "") -> None:
        """Write an option in a comment, with a value or without one."""
        shown = "" if value in (None, ()) else f" {tomlkit.item(value).as_string()}"
        self.comment(f"{key} ={shown}  # {text}" if text else f"{key} ={shown}")

    def blank(self) -> None:
        """Write an empty line."""
        self.table.add(tomlkit.nl())


def commented(
    source: Path,
    command: str,
    method: Method,
    options: Mapping[str, Any],
    weights: Mapping[str, Weight],
    planned: Plan,
    examples: int,
) -> str:
    """Return the text of a recipe of ``lpss sparsify``.

    Args:
        source: The checkpoint, for the title.
        command: The command line that runs the recipe.
        method: How the network becomes sparse.
        options: By key; ``arch``, ``epochs``, ``batch_size``, ``seed``, ``method`` and one of
            ``sparsity`` and ``target_drop`` are among them.
        weights: Prunable weights of the network by name, in layer order.
        planned: What becomes of them.
        examples: Number of training examples.
    """
    layers = _layers(weights, planned)
    section = _Section(options)
    section.write("arch")
    if "data" in section:
        section.comment(f"{examples:,} training examples.")
        section.write("data")
    section.blank()
    _write_budget(section, sum(layer.weights for layer in layers if layer.zeros is not None))
    section.blank()
    section.comment(*_table_of(layers))
    _write_patterns(section, layers)
    section.blank()
    section.comment(
        f"How the network becomes sparse: lpss sparsify --help lists all methods. {method.paper}"
    )
    section.write("method")
    _write_method(section, method)
    section.write_rest()

    document = tomlkit.document()
    for line in (
        f"Recipe for {_shown(str(source))}. It runs as it is:",
        f"    {_shown(command)}",
        "Every line may be changed. Options that are typed along with --recipe win. Options in",
        "comments are left to lpss.",
    ):
        document.add(tomlkit.comment(line))
    document.add("title", tomlkit.item(f"{source.name}, {method.name}"))
    document.add(tomlkit.nl())
    document.add(_STAGE, section.table)
    return tomlkit.dumps(document)


def _write_budget(section: _Section, total: int) -> None:
    if "sparsity" in section:
        zeros = zero_count(total, section.value("sparsity"))
        section.comment(
            f"Zeros of all {total:,} prunable weights, here {zeros:,}: 0.9, '90%' or '10x'."
        )
        section.write("sparsity")
    else:
        section.comment(
            f"Points of the metric that may be lost; as many of the {total:,} prunable weights",
            "as possible become zero.",
        )
        section.write("target_drop")
    section.comment("Passes over the training data, and examples per step.")
    section.write("epochs", "batch_size", "seed")


@dataclass(frozen=True)
class _Layer:
    """One prunable weight of the list; ``zeros`` is the fraction of zeros, None if skipped."""

    name: str
    shape: tuple[int, ...]
    weights: int
    fan_in: int | None
    zeros: float | None


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


def _table_of(layers: Sequence[_Layer]) -> Iterator[str]:
    """List the weights with their sizes: what patterns of ``skip``, ``layer``, ``p`` match."""
    yield "The weights; patterns are shell globs on their names. The zeros follow from the ranking"
    yield "of the weights as they are now."
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
        cells = (
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {'  '.join(cells)}".rstrip()


def _write_patterns(section: _Section, layers: Sequence[_Layer]) -> None:
    section.comment(
        "skip: layers that stay dense. layer: the sparsity of some layers; the others share what",
        "the overall target leaves.",
    )
    for key, example in (("skip", layers[-1].name), ("layer", f"{layers[0].name}=0.5")):
        if key in section:
            section.write(key)
        else:
            section.example(key, [example])


def _write_method(section: _Section, method: Method) -> None:
    """Write the options of the method: those that were given, the others with their defaults."""
    defaults = asdict(type(method).Config())
    for item in options_of(type(method)):
        text = item.text if len(item.choices) > 1 else item.help
        if item.key in section:
            section.comment(text)
            section.write(item.key)
        else:
            section.example(item.key, defaults[item.name], text)


def _shown(text: str) -> str:
    """Make a text from a file fit for a comment: on one line, whatever it holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
