"""The environment of a worker: what libraries need to run, and nothing that could open somebody's account.

A worker parses files from strangers; it does no downloads, so it needs no token and no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from profiler import folders
from profiler.results.settings import SPEED, heap, is_secret

PLACES = re.compile(  # what libraries need beside the settings that change speed
    "CXX|HF_HOME|HF_HUB_CACHE|HOME|HOSTNAME|HUGGINGFACE_HUB_CACHE|LANG|LANGUAGE|LOGNAME|PATH|SHELL|TERM|TMPDIR|TZ|USER"
    "|VIRTUAL_ENV|(LC|TRANSFORMERS|XDG)_.*"
    "|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|PLATLIBDIR|PYCACHEPREFIX|DONTWRITEBYTECODE|SAFEPATH)"
)
TEXT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # as the parent reads what a worker prints
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` a worker gets, by an allow-list; the hub's libraries are told to stay offline.

    Compiled code is cached in folders of this user alone, which are made here.
    """
    allowed = {
        name: value
        for name, value in environ.items()
        if (SPEED.fullmatch(name) or PLACES.fullmatch(name)) and not is_secret(name)
    }
    return heap(environ) | allowed | folders.compilers(environ) | TEXT | OFFLINE
