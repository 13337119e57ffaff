"""The one error that reaches a person: what is wrong, in which case, and what to do."""

from __future__ import annotations


class ProfileError(Exception):
    """A mistake a person can mend. ``message`` says what and where, ``hint`` what to do; never a traceback.

    Both are shown as they are, so text that came from outside must pass ``units.printable`` first.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class NotFound(ProfileError):
    """A name that is not known. The message lists what is, nearest first."""


class StoreError(ProfileError):
    """The result store cannot be opened, read or written; what was committed before is safe."""

    exit_code = 1
