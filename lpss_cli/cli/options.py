"""Option types that commands share, and the flags that methods declare. Imports no torch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from lpss_cli import method as methods
from lpss_cli.data.spec import AUGMENTS, KNOWN
from lpss_cli.errors import InputError
from lpss_cli.models import KNOWN as NETWORKS

_RUN, _DATA, _METHOD, _OUTPUT = "Training", "Data and network", "Method options", "Output"


def parse_sparsity(text: str) -> float:
    """Read ``0.9``, ``90%`` or ``10x`` (one weight in ten kept) as a fraction of zeros.

    Raises:
        InputError: it is none of the three.
    """
    try:
        if text[-1:] in ("x", "×"):
            return 1.0 - 1.0 / float(text[:-1])
        return float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"--sparsity {text!r} is no number", "write 0.9, 90% or 10x (one weight in ten kept)"
        ) from None


def parse_numbers(text: str, flag: str) -> tuple[float, ...]:
    """Read ``0.5,0.5,0.5``.

    Raises:
        InputError: a part is no finite number.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise InputError(f"{flag} {text!r} is no list of numbers", f"write {flag} 0.48,0.45,0.40")
    return values


def _opt(*names: str, help: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


Json = Annotated[bool, _opt("--json", help="Print one JSON document on stdout.", panel=_OUTPUT)]
Quiet = Annotated[bool, _opt("--quiet", "-q", help="No notes and no bars.", panel=_OUTPUT)]
Debug = Annotated[bool, _opt("--debug", help="Show tracebacks.", panel=_OUTPUT)]
Force = Annotated[bool, _opt("--force", "-f", help="Replace existing outputs.", panel=_OUTPUT)]
Out = Annotated[
    Path | None,
    _opt(
        "--out", "-o", help="Artefact to write. Default: model.pt, FILE.sparse.pt.", panel=_OUTPUT
    ),
]
Trust = Annotated[
    bool,
    _opt("--trust-pickle", help="Unpickle objects; only for files you trust.", panel=_DATA),
]
Arch = Annotated[
    str | None,
    _opt(
        "--arch",
        help=f"Network: {', '.join(NETWORKS)}, mlp:A-B-C, torchvision:NAME, timm:NAME, "
        "file.py:factory. Default: the checkpoint's own; mlp for new ones.",
        panel=_DATA,
    ),
]
DataName = Annotated[
    str | None,
    _opt(
        "--data",
        help=f"Data: {', '.join(KNOWN)}, a folder train/CLASS/*, table.csv, arrays.npz, "
        "file.py:factory. Default: the checkpoint's own; digits for new ones.",
        panel=_DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    _opt("--data-dir", help="Folder of the known data sets.", panel=_DATA, envvar="LPSS_DATA_DIR"),
]
Target = Annotated[str | None, _opt("--target", help="Table: column to predict.", panel=_DATA)]
Drop = Annotated[
    str | None, _opt("--drop", help="Table: columns to leave out, by comma.", panel=_DATA)
]
ImageSize = Annotated[
    int | None,
    _opt(
        "--image-size",
        help="Side in pixels. Default: the data's own; 224 for folders.",
        panel=_DATA,
    ),
]
Mean = Annotated[
    str | None,
    _opt(
        "--mean",
        help="Subtracted from inputs, per channel, by comma. Default: the data's.",
        panel=_DATA,
    ),
]
Std = Annotated[
    str | None,
    _opt("--std", help="Inputs are divided by it, by comma. Default: the data's.", panel=_DATA),
]
Augment = Annotated[
    str | None,
    _opt(
        "--augment",
        help=f"Training images: {', '.join(AUGMENTS)}. Default: none; cifar for CIFAR.",
        panel=_DATA,
    ),
]
SplitSeed = Annotated[
    int | None,
    _opt("--split-seed", help="Table: which of the fixed splits. Default: 0.", panel=_DATA),
]
Workers = Annotated[
    int | None, _opt("--workers", help="Processes that read big data. Default: 0.", panel=_DATA)
]
Holdout = Annotated[
    float | None,
    _opt(
        "--holdout",
        help="Measure on this part of the training data instead of the test split: "
        "for choosing options.",
        panel=_DATA,
    ),
]
Sparsity = Annotated[
    str | None,
    _opt(
        "--sparsity",
        "-s",
        help="Zeros of all prunable weights: 0.9, 90% or 10x. Default: 0 (train), 0.9 (sparsify).",
        panel=_RUN,
    ),
]
MethodName = Annotated[
    str | None,
    _opt(
        "--method",
        "-m",
        help=f"How to become sparse: {', '.join(methods.registry())}. "
        "Default: lpss; dense for train without --sparsity.",
        panel=_RUN,
    ),
]
Epochs = Annotated[
    int | None,
    _opt(
        "--epochs",
        help="Passes over the data; 0 only cuts. Default: 12 (train), 4 (sparsify), "
        "more on small data.",
        panel=_RUN,
    ),
]
BatchSize = Annotated[
    int | None,
    _opt("--batch-size", help="Examples a step. Default: 16 to 256 by data size.", panel=_RUN),
]
Seed = Annotated[
    int, _opt("--seed", help="Of initialisation, order and masks. Default: 0.", panel=_RUN)
]
Device = Annotated[
    str,
    _opt("--device", help="auto (CUDA where there is one), cpu, cuda, cuda:1, mps.", panel=_RUN),
]
Threads = Annotated[
    int | None, _opt("--threads", help="CPU threads; default: 1 for small nets.", panel=_RUN)
]
Skip = Annotated[
    list[str] | None,
    _opt("--skip", help="Weights not pruned, by pattern; repeatable. Default: none.", panel=_RUN),
]


def data_overrides(values: dict[str, Any]) -> dict[str, Any]:
    """Turn the data options that were given into fields of a ``DataSpec``."""
    given = {k: v for k, v in values.items() if v is not None}
    if "drop" in given:
        given["drop"] = [part for part in given["drop"].split(",") if part]
    for name in ("mean", "std"):
        if name in given:
            given[name] = parse_numbers(given[name], f"--{name}")
    if "data_dir" in given:
        given["data_dir"] = str(given["data_dir"])
    return given


def with_method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every flag that a registered method declares.

    The command's last parameter, ``**options``, receives those that were given.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    declared = _method_flags()

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        given = {name: values.pop(name) for name in declared}
        chosen = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None and value != []
        }
        return command(**values, **chosen)

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in declared.items()
    ]
    as_keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    # What typer reads to make the flags.
    wrapper.__signature__ = inspect.Signature(as_keyword + extra)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in as_keyword + extra}
    return wrapper


def _method_flags() -> dict[str, Any]:
    """Field name → annotated type, over the configs of all methods."""
    texts: dict[str, str] = {}
    kinds: dict[str, Any] = {}
    defaults: dict[str, dict[str, list[str]]] = {}
    for name, cls in methods.registry().items():
        hints = get_type_hints(cls.Config)
        for field in fields(cls.Config):
            texts[field.name] = field.metadata["help"]
            if field.metadata["choices"]:
                texts[field.name] += f": {', '.join(field.metadata['choices'])}"
            kinds[field.name] = _flag_type(hints[field.name])
            shown = defaults.setdefault(field.name, {})
            shown.setdefault(_default_text(field.default), []).append(name)
    everyone = len(methods.registry())
    return {
        name: Annotated[
            kinds[name] | None,
            _opt(
                "--" + name.replace("_", "-"),
                help=f"{text[:1].upper()}{text[1:]}. {_who(defaults[name], everyone)}",
                panel=_METHOD,
            ),
        ]
        for name, text in texts.items()
    }


def _flag_type(hint: Any) -> Any:
    """The type of one flag: ``tuple[str, ...]`` is a repeatable text, ``T | None`` is T."""
    if hint == tuple[str, ...]:
        return list[str]
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds else hint


def _default_text(value: Any) -> str:
    return "" if value is None or value == () else f"{value}"


def _who(defaults: dict[str, list[str]], everyone: int) -> str:
    """Say the default, or each method's own, or whose the flag is."""
    named = {value: names for value, names in defaults.items() if value}
    if len(named) == 1 and sum(map(len, defaults.values())) == everyone:
        return f"[{next(iter(named))}]"
    if not named:
        return f"({', '.join(name for names in defaults.values() for name in names)})"
    parts = (f"{value} {'/'.join(names)}" for value, names in named.items())
    return f"[{', '.join(parts)}]"
