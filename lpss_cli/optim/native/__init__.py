"""LpSGD's step as machine code, built on the spot where a C++ compiler is at hand.

``power.hpp`` and ``lpsgd.cpp`` come with the package. The first step of a process builds them for
the processor it runs on, in a second or two, and keeps the library in the user's cache; every
later process only loads it. Without a compiler nothing is lost but time: ``rowstep`` is the same
step in PyTorch's operations.
"""

from __future__ import annotations

from lpss_cli.optim.native.build import SWITCH, compiler, library
from lpss_cli.optim.native.kernel import fits, step

__all__ = ["SWITCH", "compiler", "fits", "library", "step"]
