"""What all tests share: one thread each, since tests run in parallel and waiting threads of one slow the others fifty times;
and one pool of ranks."""

from collections.abc import Iterator

import pytest
import torch
from crew import Crew

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Four processes that run functions as ranks."""
    crew = Crew()
    yield crew
    crew.close()
