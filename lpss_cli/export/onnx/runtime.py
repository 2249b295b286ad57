"""Running networks with onnxruntime: their outputs, and how long a batch takes."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpss_cli.checkpoints import read_file
from lpss_cli.checkpoints.read_file import open_regular, read_bytes
from lpss_cli.errors import InputError, one_line
from lpss_cli.reporting.latency import Latency

#: Batch sizes at which latency is measured.
BATCHES = (1, 64)
# Examples that are run at once.
_BATCH = 256
# Two ways to compute one output may each be off by the rounding of the worst input, and folding
# BatchNorm rounds once more: in networks that amplify rounding, the two differed by up to 1.7 times
# as much.
_ROUNDINGS = 4.0
# A larger difference would hide real ones, so rounding is no excuse for it.
_MAX_ROUNDING = 1e-3
# Seconds for all networks at one batch size.
_BUDGET = 0.6
_MIN_RUNS, _MAX_RUNS = 5, 500


def runtime_name() -> str:
    """Return name and version of the runtime."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def open_session(model: bytes | Path, threads: int | None = None) -> Any:
    """Load an ONNX file on the CPU.

    Args:
        model: the file, or its content.
        threads: how many threads to use; None leaves the number to the runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    # Falling back would be to the same provider, and onnxruntime announces it on stdout.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def run_onnx(model: bytes | Path, inputs: Tensor) -> Tensor:
    """Return the outputs of an exported network for (N, …) inputs, computed in batches."""
    return _run_session(open_session(model), "input", inputs)


@torch.no_grad()
def run_torch(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a network for (N, …) inputs, computed in the same batches."""
    return torch.cat([model(x) for x in inputs.split(_BATCH)])


def run_foreign_onnx(path: Path, inputs: Tensor) -> Tensor:
    """Return the first outputs of any ONNX file with one input.

    Args:
        path: the file; nothing that it refers to is read.
        inputs: (N, …) inputs of the network.

    Raises:
        InputError: the file does not exist, onnxruntime does not accept it, or it takes other
            inputs.
    """
    try:
        session = open_session(_self_contained(path))
        (name,) = (item.name for item in session.get_inputs())
        return _run_session(session, name, inputs)
    except OSError as error:
        raise InputError(f"cannot read {path}: {one_line(error)}", "check its name") from error
    except InputError:
        raise
    except Exception as error:  # onnx and onnxruntime raise classes of their own
        raise InputError(
            f"onnxruntime cannot run {path} on these inputs: {one_line(error)}",
            "give an ONNX file of the same network, with one input",
        ) from error


def _run_session(session: Any, name: str, inputs: Tensor) -> Tensor:
    parts = [session.run(None, {name: x.numpy()})[0] for x in inputs.split(_BATCH)]
    return torch.cat([torch.from_numpy(part) for part in parts])


def _self_contained(path: Path) -> bytes:
    """Return the bytes of a model that holds all its tensors itself.

    Raises:
        InputError: it refers to other files.
    """
    import onnx

    content = read_bytes(path)
    for message in _messages(onnx.load_model_from_string(content)):
        is_tensor = isinstance(message, onnx.TensorProto)
        if is_tensor and message.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"{path} keeps tensors in other files", "save it with its tensors inside"
            )
    return content


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def is_onnx_file(path: Path) -> bool:
    """Return whether a file is an ONNX model, by its name or its first bytes."""
    if path.suffix == ".onnx":
        return True
    try:
        with open_regular(path) as file:
            return read_file.is_onnx(file.read(3))
    except (InputError, OSError):
        return False  # reading it as a checkpoint says what is wrong with it


def rounding_tolerance(model: nn.Module, inputs: Tensor) -> float:
    """Return how far a file's outputs may be from a network's because of rounding.

    It is four times the difference between the network's outputs in fp32 and in fp64, and at most
    1e-3, both relative to the largest |output|. If the network cannot be run in fp64, nothing is
    known about its rounding, and the tolerance is 0.
    """
    try:
        exact = run_torch(copy.deepcopy(model).double(), inputs.double())
        rounding = float((run_torch(model, inputs) - exact).abs().max() / exact.abs().max())
    except Exception:  # the network's own code may raise anything
        return 0.0
    return min(_ROUNDINGS * rounding, _MAX_ROUNDING)


def measure_latency(
    networks: Mapping[str, bytes], inputs: Tensor, *, threads: int = 1, budget: float = _BUDGET
) -> tuple[Latency, ...]:
    """Measure the latency of several networks, taking turns run by run.

    Benchmark tools time one network after the other, and a busy moment of the machine then counts
    against whichever network it hits. In turns it hits all of them, so that networks can be
    compared with each other.

    Args:
        networks: name → ONNX file.
        inputs: (N ≥ 1, …) real inputs, repeated to fill a batch.
        threads: how many threads the runtime may use.
        budget: seconds for all networks at one batch size, about. A batch size at which five runs
            would take longer is left out.

    Returns:
        Every network at every batch size in ``BATCHES``, in that order.
    """
    sessions = {name: open_session(content, threads) for name, content in networks.items()}
    measured: list[Latency] = []
    for batch in BATCHES:
        single = sum(latency.median for latency in measured if latency.batch == 1) / 1e3
        if batch > 1 and single * batch * _MIN_RUNS > 4 * budget:
            break  # a large batch may take as little as a quarter of its size times one example
        rows = np.resize(inputs.numpy(), (batch, *inputs.shape[1:]))
        times: dict[str, list[float]] = {name: [] for name in sessions}
        start = time.perf_counter()
        for turn in range(_MAX_RUNS + 1):
            for name, session in sessions.items():
                before = time.perf_counter()
                session.run(None, {"input": rows})
                times[name].append(1e3 * (time.perf_counter() - before))
            if turn >= _MIN_RUNS and time.perf_counter() - start > budget:
                break
        # The first run fills caches and does not count.
        measured += [_summarize(name, batch, runs[1:], threads) for name, runs in times.items()]
    return tuple(measured)


def _summarize(name: str, batch: int, times: list[float], threads: int) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(name, batch, median, low, high, len(times), runtime_name(), threads)
