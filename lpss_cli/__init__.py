"""lpss: make PyTorch networks sparse, and prove what you got.

Public names load when they are first used, so importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError, LpssError, RunError
from lpss_cli.version import __version__

if TYPE_CHECKING:
    from lpss_cli.api import Sparse, describe, sparsify
    from lpss_cli.optim.lpsgd import LpSGD
    from lpss_cli.reporting.report import report
    from lpss_cli.sparsifier import Sparsifier
    from lpss_cli.sparsity.lp_geometry import hoyer

__all__ = [
    "InputError",
    "LpSGD",
    "LpssError",
    "RunError",
    "Sparse",
    "Sparsifier",
    "__version__",
    "describe",
    "hoyer",
    "report",
    "sparsify",
]

_LAZY = {
    "LpSGD": "optim.lpsgd",
    "Sparse": "api",
    "Sparsifier": "sparsifier",
    "describe": "api",
    "hoyer": "sparsity.lp_geometry",
    "report": "reporting.report",
    "sparsify": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
