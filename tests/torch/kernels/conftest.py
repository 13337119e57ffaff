"""One thread (the machine is shared with other tests), and tiny models made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from fakes.architectures import build
from transformers import PreTrainedModel
from transformers.utils import logging


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], PreTrainedModel]:
    """A model of ``fakes.architectures.CONFIGS`` by name; tests share it and must not change it."""
    return cache(build)
