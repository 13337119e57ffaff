"""Runs git on a repository that may belong to somebody else, without running anything that its settings name.

Use this only for commands that read objects and names (``rev-parse``, ``ls-tree``, ``cat-file``). Commands that read
the files of a checkout, such as ``status`` and ``diff``, would run the filters that the repository configures.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from profiler.errors import ProfileError
from profiler.shell import command
from profiler.units import printable

WAIT_S = 60.0
KEPT = ("PATH", "HOME", "XDG_CONFIG_HOME", "TMPDIR", "LD_LIBRARY_PATH")  # environment variables passed on


def output(root: Path, *arguments: str, stdin: bytes = b"", wait_s: float = WAIT_S) -> bytes | None:
    """git's output, or None if it fails or is not installed. Nothing is fetched, locked or written.

    Raises ProfileError for a repository of another user that the user's settings do not trust.
    """
    safe = [word for folder in trusted() for word in ("-c", f"safe.directory={folder}")]
    options = ["--no-pager", "--no-optional-locks", "--literal-pathspecs", "-c", "core.fsmonitor=false", *safe]
    line = ["git", "-C", str(root), *options, *arguments]
    try:
        done = subprocess.run(line, input=stdin, capture_output=True, timeout=wait_s, check=False, env=_environ())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if b"dubious ownership" in done.stderr:
        trust = command("git", "config", "--global", "--add", "safe.directory", str(root))
        raise ProfileError(
            f"git refuses the repository {printable(root)}, which belongs to another user",
            f"If you trust that user: {trust}",
        )
    return done.stdout if done.returncode == 0 else None


@cache
def trusted() -> tuple[str, ...]:
    """Other users' folders that the user or the administrator trusts (``safe.directory``)."""
    found: list[str] = []
    for scope in ("--system", "--global"):
        line = ["git", "config", scope, "-z", "--get-all", "safe.directory"]
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        try:
            done = subprocess.run(line, cwd="/", capture_output=True, timeout=WAIT_S, check=False, env=kept)
        except (OSError, subprocess.SubprocessError):
            continue
        found += [os.fsdecode(folder) for folder in done.stdout.split(b"\0") if folder]
    return tuple(found)


def _environ() -> dict[str, str]:
    """The environment for git: no variables of a hook that may have started us, and only the repository's
    settings.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return kept | {
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",  # a partial clone would fetch missing objects with a configured command
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
    }
