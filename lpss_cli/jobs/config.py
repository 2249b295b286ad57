"""The options of every job, and the request that they make.

An option of a request has the name that it has on the command line, with underscores. Its value may
be what a person types (``"60x"``, ``"study,run"``) or what TOML makes of it (``0.9``,
``["study", "run"]``). Help is read from here, so this module does not import PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpss_cli.data.spec import KNOWN as DATA_SETS
from lpss_cli.data.spec import DataSpec
from lpss_cli.errors import InputError, nearest
from lpss_cli.models import FAMILIES, usages
from lpss_cli.models import KNOWN as NETWORKS
from lpss_cli.training import method as methods
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.utils import options as declarations
from lpss_cli.utils.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    SPARSITY_PANEL,
    TRAINING_PANEL,
    Option,
    comma_separated,
    option,
)

if TYPE_CHECKING:
    import torch

#: File that a new network is written to by default.
MODEL = Path("model.pt")
#: Sparsities that a search tries by default: enough for a fifth of the kept weights.
TRIES = 6
# Beyond that, two tries differ by less than a weight in most networks.
_MOST_TRIES = 20
# More than a few threads per core only wait; tens of thousands crash the process.
_MOST_THREADS = 4 * (os.cpu_count() or 1)
_DEVICES = ("auto", "cpu", "cuda", "mps")


def _architectures() -> tuple[str, ...]:
    """Return the networks that a shell completes: those of lpss and torchvision, and prefixes."""
    from lpss_cli.models.signatures import table

    prefixes = (family.prefix for family in FAMILIES if family.prefix)
    return (*(signature.arch for signature in table()), *prefixes)


@dataclass(frozen=True)
class OutputOptions:
    """Where a job writes to.

    Attributes:
        out: File to write; None: named after the input.
        force: Replace existing files.
    """

    out: Path | None = option(
        None,
        "file to write",
        group=OUTPUT_PANEL,
        short="-o",
        default_text={
            "": "FILE.sparse.pt",
            "train": f"{MODEL}",
            "ticket": "FILE.ticket.pt",
            "init": "recipe.toml",
            "unpack": "FILE.safetensors",
        },
        recipe=False,
    )
    force: bool = option(
        False, "replace existing files", group=OUTPUT_PANEL, short="-f", recipe=False
    )


@dataclass(frozen=True)
class ComputeOptions:
    """What a job computes on.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ….
        threads: Threads of the CPU; None: one for small networks, else as many as PyTorch takes.
    """

    device: str = option(
        "auto",
        "device: cpu, cuda, cuda:1 or mps; auto is CUDA where it is available",
        group=TRAINING_PANEL,
        suggestions=lambda: _DEVICES,
    )
    threads: int | None = option(
        None,
        "number of CPU threads",
        low=1,
        high=_MOST_THREADS,
        high_text="4 per core",
        group=TRAINING_PANEL,
        default_text="1 for small networks, else PyTorch's own choice",
        advanced=True,
    )


@dataclass(frozen=True)
class SearchOptions:
    """The search for the largest sparsity that costs little.

    Attributes:
        target_drop: Hundredths of the primary metric that may be lost; None: no search.
        tries: Number of sparsities to try; None: ``TRIES``.
    """

    target_drop: float | None = option(
        None,
        "search for the largest sparsity that loses at most so many points (hundredths) of the "
        "metric on a held-out part of the training data",
        low=0,
        high=100,
        group=SPARSITY_PANEL,
    )
    tries: int | None = option(
        None,
        "number of sparsities that --target-drop tries",
        low=1,
        high=_MOST_TRIES,
        group=SPARSITY_PANEL,
        default_text=f"{TRIES}",
        advanced=True,
    )


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, and which data; ``DataSpec`` says how to prepare the data.

    Attributes:
        data: What to train and measure on; None: the checkpoint's own, or digits.
        arch: Spec of the network; None: the checkpoint's own, or the default for the data.
        holdout: Fraction of the training data to measure on, instead of the test split.
        trust_pickle: Unpickle arbitrary objects.
    """

    data: str | None = option(
        None,
        f"data: {', '.join(DATA_SETS)}, a folder train/CLASS/*, table.csv, arrays.npz, or "
        "file.py:factory",
        group=DATA_PANEL,
        default_text={"": "that of the checkpoint", "train": "digits", "compare": "digits"},
        suggestions=lambda: DATA_SETS,
    )
    arch: str | None = option(
        None,
        f"network: {', '.join((*NETWORKS, *usages()[:-1]))}, or {usages()[-1]}",
        group=DATA_PANEL,
        default_text={
            "": "that of the checkpoint, else recognized",
            "train": "mlp",
            "compare": "mlp",
        },
        suggestions=_architectures,
    )
    holdout: float | None = option(
        None,
        "fraction of the training data to measure on instead of the test split, for choosing "
        "options",
        group=DATA_PANEL,
        advanced=True,
    )
    trust_pickle: bool = option(
        False,
        "unpickle arbitrary objects; only for files that you trust",
        group=DATA_PANEL,
        recipe=False,
    )


@dataclass(frozen=True)
class RunOptions:
    """How a run is saved, watched and resumed; nothing of it changes the result.

    Attributes:
        resume: Resume an interrupted run of the same request, if there is one.
        checkpoint_steps: Steps between two saves of the state; None: at ends of epochs only.
        eval_every: Epochs between two measurements for curves; 0: none, None: ten per run.
        log: File that a JSON line per epoch is appended to.
        tensorboard: Folder for TensorBoard events of every epoch.
        keep_init: Store the weights that training starts from, for tickets.
    """

    resume: bool = option(
        False, "resume an interrupted run from OUT.partial", group=TRAINING_PANEL, recipe=False
    )
    checkpoint_steps: int | None = option(
        None,
        "number of steps between two saves of the run's state",
        low=1,
        group=TRAINING_PANEL,
        default_text="at ends of epochs, at least 30 s apart",
        advanced=True,
    )
    eval_every: int | None = option(
        None,
        "number of epochs between two measurements for the report's curve; 0 for none",
        low=0,
        group=TRAINING_PANEL,
        default_text="ten measurements per run",
        advanced=True,
    )
    log: Path | None = option(
        None,
        "append a JSON line per epoch to this file",
        group=OUTPUT_PANEL,
        recipe=False,
        advanced=True,
    )
    tensorboard: Path | None = option(
        None,
        "write TensorBoard events to this folder",
        group=OUTPUT_PANEL,
        recipe=False,
        advanced=True,
    )
    keep_init: bool = option(
        False,
        "also store the weights that training starts from, for `lpss ticket`",
        group=OUTPUT_PANEL,
        recipe=False,
        advanced=True,
    )


@dataclass(frozen=True)
class Request(
    RunOptions,
    NetworkOptions,
    SearchOptions,
    ComputeOptions,
    TrainingOptions["int | None", "float | None"],
    MethodOptions,
    OutputOptions,
):
    """One job as a person asks for it; None means the default.

    The options are those of the base classes.

    Attributes:
        data_overrides: Fields of ``DataSpec`` that were given.
        options: Options of the method that were given, by key.
        command: The command line, for the record.
    """

    data_overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def output(self) -> Path:
        """The file to write, once it is known."""
        return self.out or MODEL

    def writing_to(self, default: Path) -> Request:
        """Return the request with a file to write: the one asked for, else the default."""
        return replace(self, out=self.out or default)

    def method_name(self, sparse: bool = True) -> str:
        """Return the method asked for, else the default for a sparse or a dense network."""
        return self.method or methods.default_method(sparse)


@dataclass(frozen=True)
class TicketOptions:
    """How the mask of a sparse network is trained again.

    Attributes:
        start: Weights that the retraining starts from.
        control: Also train a random mask with the same counts.
    """

    start: str = option(
        "rewind",
        "initial weights; rewind needs --keep-init, centroids takes two numbers per layer",
        choices=("rewind", "centroids", "random"),
        key="init",
    )
    control: bool = option(True, "also train a random mask with the same counts")


@dataclass(frozen=True)
class ComparisonOptions:
    """What to compare.

    Attributes:
        methods: Registered methods; a dense run is always made.
        sparsities: Targets in (0, 1).
        seeds: Number of seeds, 0 up.
        tune: Choose learning rate and weight decay on held-out data first.
        out_dir: Folder for the results.
    """

    methods: tuple[str, ...] = option(
        (methods.DEFAULT, "gmp"),
        "methods, separated by commas; a dense run is always made",
        parse=comma_separated,
        several=True,
        suggestions=lambda: tuple(methods.registry()),
    )
    sparsities: tuple[float | str, ...] = option(
        ("0.8", "0.9", "0.95", "0.98"),
        "targets, separated by commas: 0.8,90%,60x",
        parse=comma_separated,
    )
    seeds: int = option(3, "number of runs per method and target")
    tune: bool = option(True, "choose learning rate and weight decay on held-out data first")
    out_dir: Path = option(
        Path("compare"), "folder for the results; an interrupted comparison resumes there"
    )


@dataclass(frozen=True)
class PlanOptions:
    """What a plan aims at, beside the options of a training.

    Attributes:
        hoyer: Hoyer sparsity wanted of every layer, in place of ``p``.
    """

    hoyer: float | None = option(
        None, "Hoyer sparsity wanted of every layer: finds its p, above 1", excludes=("p",)
    )


@dataclass(frozen=True)
class ExportFolder:
    """Where an export writes to.

    Attributes:
        out_dir: Folder for the files; None: that of the checkpoint.
    """

    out_dir: Path | None = option(
        None, "folder for the files", default_text="that of the checkpoint"
    )


@dataclass(frozen=True)
class VerifyOptions:
    """When two files count as equal.

    Attributes:
        tolerance: Largest difference of a weight that does not count, or of an ONNX file's
            outputs as a fraction of the largest output; None: 0, and what rounding explains.
    """

    tolerance: float | None = option(
        None,
        "largest difference of weights that counts as equal; for an ONNX file, largest difference "
        "of outputs as a fraction of the largest output",
        low=0,
        default_text="0; 1e-5 for an ONNX file",
    )


@dataclass(frozen=True)
class ReportOptions:
    """What a report says, and where.

    Attributes:
        csv: Print the layers as CSV.
        html: HTML page to write.
        sizes: Measure the files that an export would write.
    """

    csv: bool = option(False, "print the layers as CSV", excludes=("json",))
    html: Path | None = option(None, "write an HTML page with pictures that works offline")
    sizes: bool = option(
        False,
        "measure all files that export would write, and the time of a batch in onnxruntime; the "
        "files are removed",
    )


def request_options() -> dict[str, Option]:
    """Return the options that make a request, by key: those of jobs, of data and of methods."""
    declared = (*declarations.options(Request).values(), *declarations.options(DataSpec).values())
    return methods.all_options() | {item.key: item for item in declared}


def recipe_options() -> dict[str, Option]:
    """Return the options that say what to do, by key; not those that say where to write."""
    return {key: item for key, item in request_options().items() if item.recipe}


def read_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe as the library takes them, without those that are None.

    Args:
        values: Values by key, or by an alias of it.

    Raises:
        InputError: A key that no option has, or a value of another type than the option's.
    """
    known = recipe_options()
    values = declarations.canonical(known.values(), values)
    for name in values:
        if name not in known:
            raise InputError(f"there is no option {name!r}", nearest(name, tuple(known)))
    return {name: known[name].read(v) for name, v in values.items() if v is not None}


def make_request(
    typed: Mapping[str, Any], base: Mapping[str, Any] | None = None, **rest: Any
) -> Request:
    """Make the request of a command.

    Args:
        typed: Options that were given, by key; one that is None was not.
        base: Options of a recipe; what was given wins over them.
        rest: Fields of ``Request`` that a recipe does not set: ``out``, ``force``, ….

    Raises:
        InputError: See ``read_options``.
    """
    typed, base = read_options(typed), read_options(base or {})
    fields = {item.key: item.name for item in declarations.options(Request).values()}
    data_fields = declarations.options(DataSpec)

    def is_of_method(key: str) -> bool:
        return key not in fields and key not in data_fields

    method = typed.get("method")
    if method is not None and method != base.get("method", method):
        # The options of methods in the base are those of another one.
        base = {key: value for key, value in base.items() if not is_of_method(key)}
    values = base | typed
    return Request(
        **{fields[key]: value for key, value in values.items() if key in fields},
        data_overrides={key: value for key, value in values.items() if key in data_fields},
        options={key: value for key, value in values.items() if is_of_method(key)},
        **rest,
    )


def device_of(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA where it is available, else the CPU.

    Raises:
        InputError: This machine does not have it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"no device {name!r} here: {reason}", "use --device cpu") from None
    return device


def check(request: Request) -> None:
    """Refuse values that are not allowed, before any work.

    Raises:
        InputError: A value is out of range or not a choice, options exclude each other, or the
            device does not exist here.
    """
    from lpss_cli.sparsity import layer_targets

    declarations.check(request)
    if request.log and request.out and request.log.absolute() == request.out.absolute():
        raise InputError(f"--log and --out are both {request.out}", "choose another --log")
    layer_targets.check_layer_targets(request.layers)
    _check_search(request)
    device_of(request.device)


def _check_search(request: Request) -> None:
    """Refuse what a search for the sparsity leaves no room for."""
    if request.target_drop is None:
        if request.tries is not None:
            raise InputError("--tries needs --target-drop", "leave --tries out")
        return
    others = {"--sparsity": request.sparsity is not None, "--layer": bool(request.layers)}
    for flag, is_given in others.items():
        if is_given:
            raise InputError(
                f"--target-drop searches for the sparsity, and {flag} sets it",
                "give one of the two",
            )
