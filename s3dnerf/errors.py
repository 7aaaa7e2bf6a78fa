"""The one exception that a user is meant to read."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A failure that the user can mend: which file or setting, why it failed, and what to do about it.

    The command line prints it as one line and leaves with exit code 2.
    """

    def __init__(self, subject: str | Path, reason: str, cure: str) -> None:
        self.subject = str(subject)
        self.reason = reason
        self.cure = cure
        super().__init__(f"{self.subject}: {reason}. {cure}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        # An exception is rebuilt from its arguments when it crosses a process border.
        return type(self), (self.subject, self.reason, self.cure)
