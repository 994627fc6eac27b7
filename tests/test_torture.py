"""The short hunt: a few tries of every kind of fault that takes no minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="its commands are forks of one process")
def test_nothing_is_lost():
    words = [sys.executable, "-m", "tests.torture", "short", "seed=1"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert rows[0] == ["fault", "tries", "survived", "lost"]
    assert rows[-1] == ["together", "25", "25", "0"]
    assert len(rows) == 10
