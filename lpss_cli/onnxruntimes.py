"""Running ONNX files with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BATCH = 256


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
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes | Path, inputs: Tensor) -> Tensor:
    """Return the outputs for (N, …) inputs, computed in batches."""
    session = open_session(model)
    parts = [session.run(None, {"input": x.numpy()})[0] for x in inputs.split(_BATCH)]
    return torch.cat([torch.from_numpy(part) for part in parts])


@torch.no_grad()
def run_torch(model: torch.nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs of a network for (N, …) inputs, computed in the same batches."""
    return torch.cat([model(x) for x in inputs.split(_BATCH)])
