"""Configs by name: from the catalog that ships with the profiler, or from the Hugging Face hub.

The catalog is ``scenarios/models/NAME.json``. The hub is accessed with huggingface_hub, so its cache, token,
``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` work as usual. Only configs and safetensors are downloaded, never pickles or
code.

huggingface_hub is imported inside functions, because the import takes a quarter of a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from profiler.errors import NotFound, ProfileError
from profiler.foreign import exists, read_bytes
from profiler.models import config, safetensors
from profiler.units import printable

# What the configs do not say; sources are in scenarios/models/SOURCES.md.
NOTES = {"qwen3.8-27b": "its config is inferred: the authors state the architecture and shape of Qwen 3.6 27B"}
NEAREST = 3  # names in a suggestion

MAX_REFERENCE = 1024  # bytes: a commit hash has 40
PATIENCE_S = 5.0  # for the hub's first response
ONLY = "Only safetensors are loaded. From a GGUF repository, download the file and pass its path."
NOT_CACHED = "its weights are not in the hub's cache"
WANTED = ["config.json", "generation_config.json", "*.safetensors", safetensors.INDEX]
UNWANTED = ["*/*", "consolidated*"]  # subfolders hold other formats; consolidated files repeat the shards


@cache
def names() -> tuple[str, ...]:
    """All catalog names, sorted."""
    folder = files("profiler.scenarios") / "models"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def find(name: str) -> str | None:
    """The catalog's spelling of ``name``, ignoring case; ``None`` if it is not in the catalog."""
    return next((known for known in names() if known == name.casefold()), None)


def nearest(name: str) -> list[str]:
    """Up to three catalog names similar to ``name``, those with the same beginning first.

    ``gemma3`` matches ``gemma-3-1b``. The owner of a hub id is ignored.
    """
    typed = name.casefold().rpartition("/")[2]
    alike = [known for known in names() if _letters(known).startswith(_letters(typed)) and _letters(typed)]
    longer = [known for known in names() if _letters(typed).startswith(_letters(known))]
    close = difflib.get_close_matches(typed, names(), n=NEAREST, cutoff=0.5)
    return list(dict.fromkeys([*alike, *longer, *close]))[:NEAREST]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name))


def shipped_config(name: str) -> dict[str, Any]:
    """The raw config of a catalog entry."""
    file = files("profiler.scenarios") / "models" / f"{name}.json"
    return config.parse(file.read_bytes(), f"{name}.json")


def split(name: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision`` into id and revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def raw_config(repository: str, revision: str | None, offline: bool | None = None) -> tuple[dict[str, Any], str]:
    """The raw config.json and its commit. ``offline``: use only the cache; None: as the environment says.

    Without a connection the cache is used. The ProfileError says whether the model, the revision, the file, the
    permission or the connection is missing.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    refused = None if offline else _refusal(repository, revision)
    cached_only = bool(offline) or refused is not None
    with _in_words(repository, revision):
        try:
            path = Path(
                hf_hub_download(
                    repository,
                    "config.json",
                    revision=revision,
                    local_files_only=cached_only,
                    tqdm_class=_no_progress(),
                )
            )
        except LocalEntryNotFoundError as error:
            raise _absent(repository, refused) or error from None
    return config.parse(_bounded(path), f"config.json of {printable(repository)}"), path.parent.name


def _refusal(repository: str, revision: str | None) -> Exception | None:
    """The hub's error for this config, if any. Asked first, since a download retries for 20 s without a
    connection.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=PATIENCE_S)
    except Exception as error:  # the caller reports it
        return error
    return None


def _absent(repository: str, refused: Exception | None) -> Exception | None:
    """The error for a config that is not in the cache: the hub's own, or that it cannot be reached."""
    from huggingface_hub import errors

    answers = (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled)
    if refused is None or isinstance(refused, answers):
        return refused
    shown, reason = printable(repository), _first_line(refused)
    words = f"{shown} is not in the hub's cache and the hub cannot be reached ({reason})"
    return ProfileError(words, _instead(repository))


def _instead(repository: str) -> str:
    """A hint at what to name instead of a model that cannot be downloaded."""
    near = nearest(repository)[:1]
    return f"Pass a folder, a .gguf file or a catalog name{f' such as {near[0]}' if near else ''}: profile models"


def _first_line(error: Exception) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error).partition("\n")[0])
    return printable(text or type(error).__name__, 120)


def _no_progress() -> Any:
    return partial(import_module("tqdm").tqdm, disable=True)  # huggingface_hub depends on it; it has no types


def _bounded(path: Path) -> bytes:
    return read_bytes(path, config.MAX_BYTES)


def main_commit(folder: Path) -> str:
    """The commit that ``main`` means in a model's folder of the cache; empty if that is not known."""
    reference = folder / "refs" / "main"
    try:
        return read_bytes(reference, MAX_REFERENCE).decode("ascii", "replace").strip() if exists(reference) else ""
    except ProfileError:
        return ""


def downloaded_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The cached folder with this model's config and all its weights; ``None`` if anything is missing."""
    found = _cached(repository, revision)
    return found if isinstance(found, Path) else None


def why_not_downloaded(repository: str, revision: str | None = None) -> str:
    """Why ``downloaded_snapshot`` is ``None``."""
    return str(_cached(repository, revision))


def _cached(repository: str, revision: str | None) -> Path | str:
    """The cached folder of a whole model, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _in_words(repository, revision):
        _check_reference(repository, revision)
        try:
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    local_files_only=True,
                    allow_patterns=WANTED,
                    ignore_patterns=UNWANTED,
                )
            )
        except LocalEntryNotFoundError as error:
            return "its download is not complete" if "is incomplete" in str(error) else NOT_CACHED
    try:
        whole = safetensors.shards(folder) is not None and (folder / "config.json").is_file()
    except ProfileError as error:  # a shard that the index names has not been downloaded
        return f"its download is not complete: {error.message}"
    return folder if whole else NOT_CACHED


def _check_reference(repository: str, revision: str | None) -> None:
    """ProfileError if the cached commit of a branch or tag is not a small regular file.

    huggingface_hub would read it whole, or block on a pipe.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    if exists(reference):
        read_bytes(reference, MAX_REFERENCE, f"the cached reference of {printable(repository)}")


def download_size(repository: str, revision: str | None = None) -> int:
    """Bytes that ``download`` would fetch, without files that are already cached."""
    from huggingface_hub import snapshot_download

    with _in_words(repository, revision):
        files = snapshot_download(
            repository, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, dry_run=True
        )
    return sum(file.file_size or 0 for file in files if file.will_download)


def download(repository: str, revision: str | None = None) -> Path:
    """Download config and safetensors into the cache; return the folder. huggingface_hub prints its progress."""
    from huggingface_hub import snapshot_download

    with _in_words(repository, revision):
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
        )
    if safetensors.shards(folder) is None:
        raise ProfileError(f"{printable(repository)} has no safetensors", ONLY)
    return folder


@contextmanager
def _in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub into one line. Subclasses come before their base classes."""
    from huggingface_hub import errors

    shown = printable(repository)
    try:
        yield
    except ProfileError:
        raise
    except errors.HFValidationError:
        raise NotFound(
            f"{shown} is not a valid Hugging Face id", "It is owner/name or owner/name@revision."
        ) from None
    except errors.GatedRepoError:
        raise ProfileError(
            f"{shown} is gated on the hub", "Accept its terms there, then log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFound(
            f"no model {shown} on the hub, or no permission to see it",
            "Check the spelling; for a private model log in with: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFound(f"{shown} has no revision {printable(revision)}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ProfileError(
            f"{shown} is not in the hub's cache, and the hub is offline or cannot be reached",
            f"Unset HF_HUB_OFFLINE if it is set. {_instead(repository)}",
        ) from None
    except errors.EntryNotFoundError:
        raise NotFound(
            f"{shown} has no config.json", "From a GGUF repository, download the file and pass its path."
        ) from None
    except errors.NotASafetensorsRepoError:
        raise ProfileError(f"{shown} has no safetensors", ONLY) from None
    except Exception as error:  # from the HTTP library that huggingface_hub uses
        raise ProfileError(f"the request to the hub for {shown} failed: {_first_line(error)}") from None
