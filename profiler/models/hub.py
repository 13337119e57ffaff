"""Configs by name: the catalog that ships with the profiler, and the Hugging Face hub.

The catalog is ``scenarios/models/NAME.json``. The hub is used through huggingface_hub, so its cache, token,
``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` work as its users expect. Only configs and safetensors are ever fetched, never
pickles or code.

huggingface_hub is imported inside functions: it costs a quarter of a second that other models need not pay.
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

# What the files cannot say of themselves; sources are in scenarios/models/SOURCES.md.
NOTES = {"qwen3.8-27b": "its config is inferred: the authors state the architecture and shape of Qwen 3.6 27B"}
NEAREST = 3  # names that a suggestion holds

MAX_REFERENCE = 1024  # bytes: a commit is 40
PATIENCE_S = 5.0  # for the first answer of the hub
ONLY = "Only safetensors are ever loaded; of a GGUF repository download the file and give its path."
WANTED = ["config.json", "generation_config.json", "*.safetensors", safetensors.INDEX]
UNWANTED = ["*/*", "consolidated*"]  # subfolders hold other formats; consolidated files repeat the shards


@cache
def names() -> tuple[str, ...]:
    """All catalog names, sorted."""
    folder = files("profiler.scenarios") / "models"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def find(name: str) -> str | None:
    """The catalog's spelling of ``name``, whatever the case; ``None`` if it is not in the catalog."""
    return next((known for known in names() if known == name.casefold()), None)


def nearest(name: str) -> list[str]:
    """Up to three catalog names that ``name`` may have meant, those that start like it first.

    ``gemma3`` is the start of ``gemma-3-1b``; of a hub id only the part after the owner counts.
    """
    typed = name.casefold().rpartition("/")[2]
    alike = [known for known in names() if _letters(known).startswith(_letters(typed)) and _letters(typed)]
    longer = [known for known in names() if _letters(typed).startswith(_letters(known))]
    close = difflib.get_close_matches(typed, names(), n=NEAREST, cutoff=0.5)
    return list(dict.fromkeys([*alike, *longer, *close]))[:NEAREST]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name))


def shipped_config(name: str) -> dict[str, Any]:
    """The raw config of a catalog name."""
    file = files("profiler.scenarios") / "models" / f"{name}.json"
    return config.parse(file.read_bytes(), f"{name}.json")


def split(name: str) -> tuple[str, str | None]:
    """``owner/name@revision`` as id and revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def raw_config(repository: str, revision: str | None, offline: bool | None = None) -> tuple[dict[str, Any], str]:
    """The raw config.json and the commit it is of. ``offline``: only look in the cache; None: ask the environment.

    Without a connection the cache is used. ProfileError says whether the model, the revision, the file, the
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
    """What the hub has against giving this config, asked once: downloading retries for 20 s without a connection."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=PATIENCE_S)
    except Exception as error:  # put into words by the caller
        return error
    return None


def _absent(repository: str, refused: Exception | None) -> Exception | None:
    """What to say of a config that is not in the cache: the hub's own answer, or that there was none."""
    from huggingface_hub import errors

    answers = (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled)
    if refused is None or isinstance(refused, answers):
        return refused
    shown, reason = printable(repository), _first_line(refused)
    words = f"{shown} is not in the hub's cache and the hub cannot be reached ({reason})"
    return ProfileError(words, _instead(repository))


def _instead(repository: str) -> str:
    """What could be named in place of a model that cannot be fetched."""
    near = nearest(repository)[:1]
    return f"Give a folder, a .gguf file or a catalog name{f' such as {near[0]}' if near else ''}: profile models."


def _first_line(error: Exception) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error).partition("\n")[0])
    return printable(text or type(error).__name__, 120)


def _no_progress() -> Any:
    return partial(import_module("tqdm").tqdm, disable=True)  # a dependency of huggingface_hub, without types


def _bounded(path: Path) -> bytes:
    return read_bytes(path, config.MAX_BYTES)


def downloaded_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The folder in the cache that holds this model's config and all its weights; ``None`` if anything is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _in_words(repository, revision):
        _check_reference(repository, revision)
        try:
            found = snapshot_download(
                repository,
                revision=revision,
                local_files_only=True,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        except LocalEntryNotFoundError:
            return None
    folder = Path(found)
    try:
        whole = safetensors.shards(folder) is not None and (folder / "config.json").is_file()
    except ProfileError:  # a shard that the index names has not been downloaded
        return None
    return folder if whole else None


def _check_reference(repository: str, revision: str | None) -> None:
    """ProfileError if what the cache has as the commit of a branch or tag is no small file.

    The client reads it whole, and waits for a pipe.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    reference = folder / "refs" / (revision or constants.DEFAULT_REVISION)
    if exists(reference):
        read_bytes(reference, MAX_REFERENCE, f"the cached reference of {printable(repository)}")


def download_size(repository: str, revision: str | None = None) -> int:
    """Bytes that ``download`` would fetch; what the cache holds is not counted."""
    from huggingface_hub import snapshot_download

    with _in_words(repository, revision):
        files = snapshot_download(
            repository, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, dry_run=True
        )
    return sum(file.file_size or 0 for file in files if file.will_download)


def download(repository: str, revision: str | None = None) -> Path:
    """Fetch config and safetensors into the cache; the folder. Prints huggingface_hub's own progress to stderr."""
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
    """Turns what the hub's client raises into one line. The most special class comes first: they are nested."""
    from huggingface_hub import errors

    shown = printable(repository)
    try:
        yield
    except ProfileError:
        raise
    except errors.HFValidationError:
        raise NotFound(f"{shown} is not a valid hub id", "A hub id is owner/name or owner/name@revision.") from None
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
            f"{shown} has no config.json", "For a GGUF repository download the file and give its path."
        ) from None
    except errors.NotASafetensorsRepoError:
        raise ProfileError(f"{shown} has no safetensors", ONLY) from None
    except Exception as error:  # the client's HTTP library is its own affair, and so are its errors
        raise ProfileError(f"asking the hub for {shown} failed: {_first_line(error)}") from None
