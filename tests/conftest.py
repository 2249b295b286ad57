"""Shared fixtures; one thread, so that results do not depend on the machine's core count."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests/reference, tests/helpers
torch.set_num_threads(1)
