import os
import tempfile

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # not the user's
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in several processes

import pytest
from own_tables import METHODS, declare

from sam_repro.results.declare import load


@pytest.fixture
def methods(tmp_path):
    return load(declare(tmp_path / "experiments", METHODS), "own/t")
