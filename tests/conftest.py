"""Settings and fixtures of all tests.

Each process of tests uses one thread: tests run in parallel, and the waiting threads of one test
slow the others down up to fifty times.
"""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from tests.helpers.ranks import RankPool

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


def pytest_collection_finish() -> None:
    """Leave what has been imported out of the collections of garbage that tests ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Four processes that run functions as ranks."""
    pool = RankPool()
    yield pool
    pool.close()
