import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in several processes

import pytest
from own_tables import METHODS, declare

from sam_repro.tables.declare import load


@pytest.fixture
def methods(tmp_path):
    return load(declare(tmp_path / "experiments", METHODS), "own/t")
