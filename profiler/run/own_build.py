"""The build of llama.cpp that a printed command has to name, because none is found without ``--llama-cpp``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.cost import engines
from profiler.cost.engines.base import BUILD_BLANK, Engine
from profiler.errors import ProfileError, StoreError
from profiler.settings import existing_results

if TYPE_CHECKING:  # predictions without llama.cpp do without the store
    from profiler.results.store import Run

OPTION = "--llama-cpp"


def needed(engine: Engine, store: Path | None) -> str | None:
    """The folder to name in a sweep of ``engine``: that of the newest run in the store that named one which is still
    there, else ``BUILD_BLANK``. None if a sweep finds a build by itself, or needs none.
    """
    if engine is not engines.find(engines.OF_GGUF):
        return None
    from profiler.backends.llama_cpp import build

    with suppress(ProfileError):
        build.find()
        return None
    for folder in named(_runs(store)):
        with suppress(ProfileError):
            build.named(folder)
            return folder
    return BUILD_BLANK


def named(runs: Iterable[Run]) -> Iterator[str]:
    """The folders that ``--llama-cpp`` named in the command lines of runs, the newest of which is the last one."""
    for run in reversed(list(runs)):
        for word, following in pairwise([*run.argv, ""]):
            folder = following if word == OPTION else word.partition("=")[2] if word.startswith(f"{OPTION}=") else ""
            if folder:
                yield folder


def _runs(path: Path | None) -> Sequence[Run]:
    place = existing_results(path)
    if place is None:
        return ()
    from profiler.results.store import Store

    try:
        with Store.read_only(place) as store:
            return store.runs(counted=False)
    except StoreError:
        return ()
