"""A short form of tests/torture.py, which kills a run at random moments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("torture.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_nothing_is_lost_when_a_run_is_killed():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "6"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills 6" in done.stdout and "losses 0" in done.stdout
