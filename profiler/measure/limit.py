"""``--max-memory``: a limit on a worker's host memory that makes an allocation fail, so that it is an error in words.

RLIMIT_DATA, not RLIMIT_AS: a CUDA build of PyTorch reserves address ranges many times the machine's memory. The
kernel counts private writable mappings when they are made, not when they are touched, and does not count files or
shared memory; for those the supervisor watches the resident size and kills.
"""

from __future__ import annotations

import resource

from profiler.devices.cpu import process_bytes


def limit_memory(max_bytes: int) -> None:
    """Let this process's resident memory grow to about ``max_bytes`` and no further.

    What is mapped but untouched now (thread stacks, arenas) is allowed on top, since it is not memory yet, and the
    resident pages of files are taken off. To be called again as those change; the hard limit stays, so it may rise.
    """
    mapped, anonymous, resident = (process_bytes(field) for field in ("VmData", "RssAnon", "VmRSS"))
    untouched, files = max(0, mapped - anonymous), resident - anonymous
    _set(max(0, max_bytes - files + untouched))


def lift_limit() -> None:
    """As high as it may be: the words that say an allocation failed need memory too."""
    _set(resource.getrlimit(resource.RLIMIT_DATA)[1])


def _set(soft: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
