"""The networks that lpss knows by name, and the way to any other network.

``resolve`` completes a spec as typed, ``build`` builds the network. Importing this package does not
import torch: a network's module is imported when it is built.
"""

from lpss_cli.models.families import (
    FAMILIES,
    KNOWN,
    build,
    family_of,
    find_family,
    mlp_widths,
    resolve,
    runs_code,
    sizes_of,
    usages,
)
from lpss_cli.models.info import Fit, ImagePreprocessing, ModelInfo

__all__ = [
    "FAMILIES",
    "KNOWN",
    "Fit",
    "ImagePreprocessing",
    "ModelInfo",
    "build",
    "family_of",
    "find_family",
    "mlp_widths",
    "resolve",
    "runs_code",
    "sizes_of",
    "usages",
]
