"""Shared set-up; one thread, so that results do not depend on the machine's core count."""

import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/reference, tests/helpers
import faults

torch.set_num_threads(1)
# The same examples on every run, and no clock: a busy machine is no failure.
settings.register_profile("lpss", deadline=None, derandomize=True)
settings.load_profile("lpss")


@pytest.fixture
def noticed_signals():
    """Ignored signals stay ignored, and a test run in the background ignores some."""
    before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def lpss(monkeypatch, tmp_path):
    """Run the command line in an empty directory; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return faults.lpss
