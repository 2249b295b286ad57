"""LpSGD's step as machine code, compiled on the spot where there is a C++ compiler.

``power.hpp`` and ``lpsgd.cpp`` are part of the package. The first step of a process compiles them
for the processor that it runs on, in a second or two, and keeps the library in the user's cache;
every later process only loads it. Without a compiler only speed is lost: ``lp_step`` takes the same
step in PyTorch operations.
"""

from __future__ import annotations

from lpss_cli.optim.native.kernel import SWITCH, compiler, fits, library, step

__all__ = ["SWITCH", "compiler", "fits", "library", "step"]
