"""What git says of a repository that may be somebody else's: nothing that its settings or attributes name is run.

Only commands that read objects and names are meant for this (``rev-parse``, ``ls-tree``, ``cat-file``). Those that
look at the files of a checkout, ``status`` and ``diff`` among them, run the filters that the repository names.
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
KEPT = ("PATH", "HOME", "XDG_CONFIG_HOME", "TMPDIR", "LD_LIBRARY_PATH")  # of the environment


def output(root: Path, *arguments: str, stdin: bytes = b"", wait_s: float = WAIT_S) -> bytes | None:
    """What git prints, or None when it refuses or is not there. Nothing is fetched, locked or written.

    Raises ProfileError where the repository belongs to somebody else, whom the user's settings do not trust.
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
    """The folders of other people that the user or the administrator trusts, which git asks for by this setting."""
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
    """No variable of a hook that we may have been started by, and no settings but the repository's."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return kept | {
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",  # a partial clone would fetch what is missing, by a command of its settings
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
    }
