"""Running ONNX files with onnxruntime."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpss_cli.checkpoints import read_file
from lpss_cli.checkpoints.read_file import opened, read_whole
from lpss_cli.errors import InputError, one_line
from lpss_cli.report.latency import Latency

_BATCH = 256
# Two ways to compute one output may each be off by the rounding of the worst input, and folding
# BatchNorm rounds once more: networks in which rounding grows differed by up to 1.7 times as much.
_ROUNDINGS = 4.0
# More than this is no rounding that a comparison could see through.
_LARGEST = 1e-3


def runtime() -> str:
    """Name and version of the runtime."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def open_session(model: bytes | Path, threads: int | None = None) -> Any:
    """Load an ONNX file on the CPU; ``threads`` None leaves their number to the runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    # Without falling back to the same provider again, which it announces on stdout.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def run(model: bytes | Path, inputs: Tensor) -> Tensor:
    """Return the outputs for (N, …) inputs, computed in batches."""
    session = open_session(model)
    parts = [session.run(None, {"input": x.numpy()})[0] for x in inputs.split(_BATCH)]
    return torch.cat([torch.from_numpy(part) for part in parts])


def is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model, told by its name or its first bytes."""
    if path.suffix == ".onnx":
        return True
    try:
        with opened(path) as file:
            return read_file.is_onnx(file.read(3))
    except (InputError, OSError):
        return False  # the ordinary way says what is wrong with it


def run_foreign(path: Path, inputs: Tensor) -> Tensor:
    """Return the first outputs of any ONNX file of one input.

    Args:
        path: the file; nothing it refers to is read.
        inputs: (N, …) of what the network takes.

    Raises:
        InputError: no such file, none that onnxruntime takes, or one for other inputs.
    """
    try:
        session = open_session(_contained(path))
        (first,) = (item.name for item in session.get_inputs())
        parts = [session.run(None, {first: x.numpy()})[0] for x in inputs.split(_BATCH)]
        return torch.cat([torch.from_numpy(part) for part in parts])
    except OSError as error:
        raise InputError(f"cannot read {path}: {one_line(error)}", "check its name") from error
    except InputError:
        raise
    except Exception as error:  # onnx and onnxruntime raise classes of their own
        raise InputError(
            f"onnxruntime does not run {path} on these inputs: {one_line(error)}",
            "give an ONNX file of the same network, with one input",
        ) from error


def _contained(path: Path) -> bytes:
    """Return a model's bytes, once it is known to hold all its tensors itself."""
    import onnx

    content = read_whole(path)
    for part in _messages(onnx.load_model_from_string(content)):
        if isinstance(part, onnx.TensorProto) and part.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"{path} keeps tensors in other files", "save it with its tensors inside"
            )
    return content


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all those within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


@torch.no_grad()
def run_torch(model: torch.nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a network for (N, …) inputs, computed in the same batches."""
    return torch.cat([model(x) for x in inputs.split(_BATCH)])


def explained_by_rounding(model: torch.nn.Module, inputs: Tensor) -> float:
    """Return how far a file's outputs may be from a network's, as a part of the largest.

    Four times as far as the network's own are from those in fp64, and no further than 1e-3; 0
    where it cannot be run in fp64, for then nothing is known of it.
    """
    try:
        exact = run_torch(copy.deepcopy(model).double(), inputs.double())
        rounding = float((run_torch(model, inputs) - exact).abs().max() / exact.abs().max())
    except Exception:  # the network's own code may raise anything
        return 0.0
    return min(_ROUNDINGS * rounding, _LARGEST)


# MERGED: How long onnxruntime takes for a batch: medians and quartiles, several networks in turn.
BATCHES = (1, 64)
# Seconds for all networks at one batch size.
_BUDGET = 0.6
_FEWEST, _MOST = 5, 500


def measure_latency(
    networks: Mapping[str, bytes], inputs: Tensor, *, threads: int = 1, budget: float = _BUDGET
) -> tuple[Latency, ...]:
    """Measure networks side by side, run by run in turn, so that a busy moment hits them all.

    Args:
        networks: name → ONNX file.
        inputs: (N ≥ 1, …) real inputs, repeated to fill a batch.
        threads: of the runtime.
        budget: seconds for all networks at one batch size, about; a batch size of which five runs
            would take longer is left out.

    Returns:
        Every network at every batch size in ``BATCHES``, in that order.
    """
    sessions = {name: open_session(content, threads) for name, content in networks.items()}
    found: list[Latency] = []
    for batch in BATCHES:
        single = sum(row.median for row in found if row.batch == 1) / 1e3
        if batch > 1 and single * batch * _FEWEST > 4 * budget:
            break  # a large batch costs less than its size times one, up to four times less
        rows = np.resize(inputs.numpy(), (batch, *inputs.shape[1:]))
        times: dict[str, list[float]] = {name: [] for name in sessions}
        start = time.perf_counter()
        for turn in range(_MOST + 1):
            for name, session in sessions.items():
                before = time.perf_counter()
                session.run(None, {"input": rows})
                times[name].append(1e3 * (time.perf_counter() - before))
            if turn >= _FEWEST and time.perf_counter() - start > budget:
                break
        found += [_latency(name, batch, values[1:], threads) for name, values in times.items()]
    return tuple(found)


def _latency(name: str, batch: int, values: list[float], threads: int) -> Latency:
    """Sum up the runs; the first, which fills caches, has been left out."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(name, batch, median, low, high, len(values), runtime(), threads)
