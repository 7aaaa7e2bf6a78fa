"""The one exception that a user is meant to read."""

from __future__ import annotations

from pathlib import Path

LONGEST_SUBJECT = 600
"""Characters of a subject that are shown, at most; of longer ones, such as endless paths, the middle is left out."""


class UserError(Exception):
    """A failure that the user can fix: which file or setting, why it failed, and what to do about it.

    The command line prints it as one line and leaves with exit code 2.
    """

    def __init__(self, subject: str | Path, reason: str, cure: str) -> None:
        self.subject = str(subject) or "''"
        self.reason = reason
        self.cure = cure
        super().__init__(escape_controls(f"{shorten(self.subject, LONGEST_SUBJECT)}: {reason}. {cure}"))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        # An exception is rebuilt from its arguments when it crosses a process border.
        return type(self), (self.subject, self.reason, self.cure)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def shorten(text: str, length: int) -> str:
    """Return ``text``, its middle replaced by dots where it has more than ``length`` characters."""
    if len(text) <= length:
        return text
    end = (length - 3) // 2
    return f"{text[: length - 3 - end]}...{text[-end:]}"


def escape_controls(text: str) -> str:
    """Return ``text`` on one line: line ends and other control characters, as in odd file names, are written out."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
