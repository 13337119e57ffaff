"""One error for all the ways in which PyTorch says that memory has run out. This imports torch, not transformers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from profiler.backends.base import OutOfMemory
from profiler.units import bytes_text

MEMORY_WORDS = (  # parts of PyTorch's error messages when memory has run out
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
ALLOCATION = re.compile(r"tried to allocate (\d+) bytes")  # in the CPU allocator's message, after a C++ file and line


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raises OutOfMemory for all the errors that PyTorch raises when memory has run out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error).splitlines()[0]) from error
    except MemoryError as error:
        raise OutOfMemory(str(error) or "Python could not allocate memory") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in MEMORY_WORDS):
            raise
        found = ALLOCATION.search(str(error))
        cause = f"{bytes_text(int(found[1]))} more could not be allocated" if found else str(error).splitlines()[0]
        raise OutOfMemory(cause) from error
