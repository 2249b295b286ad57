"""Shared set-up; one thread, so that results do not depend on the machine's core count."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/reference, tests/helpers
torch.set_num_threads(1)
# The same examples on every run, and no clock: a busy machine is no failure.
settings.register_profile("lpss", deadline=None, derandomize=True)
settings.load_profile("lpss")
