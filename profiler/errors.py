"""The error classes for users: a message that says what is wrong and in which case, and a hint at what to do."""

from __future__ import annotations

import errno

EXHAUSTED = {  # a limit of the system that was reached → what to do
    errno.EMFILE: "Raise the limit on open files: ulimit -n 1024.",
    errno.ENFILE: "The machine has too many files open: close some programs.",
    errno.ENOSPC: "Free some space on that disk, or set TMPDIR to use another folder for temporary files.",
    errno.EDQUOT: "Free some space on that disk, or set TMPDIR to use another folder for temporary files.",
    errno.EFBIG: "Raise the limit on the size of files: ulimit -f unlimited.",
}


class ProfileError(Exception):
    """A problem that the user can fix. ``message`` says what and where, ``hint`` what to do; no traceback is shown.

    Both are printed unchanged, so text from outside must pass through ``units.printable`` first.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def flat(error: BaseException) -> str:
    """The message of an error in one line, in which a hint is a sentence of its own."""
    text = str(error)
    if isinstance(error, ProfileError) and error.hint:
        text = f"{error.message.rstrip('.')}. {error.hint}"
    return " ".join(text.split())


class NotFound(ProfileError):
    """An unknown name. The message lists the known ones, the nearest first."""


class StoreError(ProfileError):
    """The result store cannot be opened, read or written; rows that were committed before are safe."""

    exit_code = 1


class NoStore(StoreError):
    """There is no result store to read: a usage error, as for any other file that does not exist."""

    exit_code = 2
