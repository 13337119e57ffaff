"""No process that a worker started outlives the profiler, not even when the profiler is killed by SIGKILL.

The kernel ends the worker itself (``PR_SET_PDEATHSIG``), and then nothing in it can act any more; nor could a thread
of it while C code holds the interpreter. So a small process of the worker's own group waits for the profiler's end.
"""

from __future__ import annotations

import os
import resource
import select
import signal


def guard_group(parent: int) -> None:
    """Fork a process that ends this one's whole group with SIGKILL when ``parent`` ends.

    To be called by the leader of a group, before it has threads. The guard lives until the group is killed, which is
    how a parent ends every worker. Raises OSError.
    """
    group, ended = os.getpid(), os.pidfd_open(parent)
    if os.fork():
        os.close(ended)
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # a polite end is the worker's affair
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(ended)  # its copies of the pipes would hide that the worker has closed them
        select.select([ended], [], [])
        os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(1)  # whatever happened, it is no second worker


def _close_all_but(kept: int) -> None:
    end = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(0, kept)
    os.closerange(kept + 1, end if end != resource.RLIM_INFINITY else 1 << 20)
