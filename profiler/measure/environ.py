"""The environment of a worker: what libraries need to run, and nothing that could open somebody's account.

A worker parses files from strangers; it does no downloads, so it needs no token and no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from profiler import folders
from profiler.results.settings import SPEED, heap, is_secret

PLACES = re.compile(  # what libraries need beside the settings that change speed
    "CXX|HF_HOME|HF_HUB_CACHE|HOME|HOSTNAME|HUGGINGFACE_HUB_CACHE|LANG|LANGUAGE|LOGNAME|PATH|SHELL|TERM|TMPDIR|TZ|USER"
    "|VIRTUAL_ENV|(LC|TRANSFORMERS|XDG)_.*"
    "|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|PLATLIBDIR|PYCACHEPREFIX|DONTWRITEBYTECODE|SAFEPATH)"
)
TEXT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # as the parent reads what a worker prints
CACHES = {  # of libraries that load what lies there as code, from places that others may write to
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
}
NOWHERE = os.path.join(os.devnull, "none")  # no folder can ever be made there
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
    return heap(environ) | allowed | caches(environ) | TEXT | OFFLINE


def caches(environ: Mapping[str, str]) -> dict[str, str]:
    """Where libraries keep compiled code, and our own cache for the worker, by the variables that say so.

    A folder that the user has named stays, if nobody else can write to it.
    """
    found = {}
    for name, folder in CACHES.items():
        named = environ.get(name)
        if named and folders.is_private(Path(named)):
            found[name] = named
            continue
        try:
            place = folders.scratch(folder)
            found |= {name: str(place), folders.CACHE: str(place.parent)}
        except OSError:  # nowhere to write; what needs a cache says so, and nothing is taken from a common place
            found[name] = NOWHERE
    return found
