"""The exception for failures that the user can fix."""

from __future__ import annotations

from typing import Any

MAX_SUBJECT_LENGTH = 600
"""Maximum number of characters shown of a subject; the middle of longer ones, such as long paths, is left out."""


class UserError(Exception):
    """A failure that the user can fix. The command line prints it as one line and exits with code 2.

    Args:
        subject: the file or setting that fails.
        reason: why it fails.
        hint: how to fix it.
    """

    def __init__(self, subject: object, reason: str, hint: str) -> None:
        self.subject = str(subject) or "''"
        self.reason = reason
        self.hint = hint
        super().__init__(escape_controls(f"{shorten(self.subject, MAX_SUBJECT_LENGTH)}: {reason}. {hint}"))

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        # Exceptions are rebuilt from their arguments when they are passed between processes.
        return type(self), (self.subject, self.reason, self.hint)


class ArgumentError(UserError):
    """An argument that cannot be used. The message names the argument; the command line names its option instead.

    Args:
        name: the argument, such as "fit_steps".
        value: the value as shown in the message; None leaves it out.
        reason: why it cannot be used.
        hint: how to fix it.
    """

    def __init__(self, name: str, value: object, reason: str, hint: str) -> None:
        self.name, self.value = name, value
        super().__init__(name if value is None else f"{name} {value}", reason, hint)

    def __reduce__(self) -> tuple[type[UserError], tuple[Any, ...]]:
        return type(self), (self.name, self.value, self.reason, self.hint)

    def to_option(self) -> UserError:
        """Return the same error with the name of the option, such as "--fit-steps"."""
        option = f"--{self.name.replace('_', '-')}"
        return UserError(option if self.value is None else f"{option} {self.value}", self.reason, self.hint)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if there is none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def shorten(text: str, length: int) -> str:
    """Return ``text`` with its middle replaced by dots if it has more than ``length`` characters."""
    if len(text) <= length:
        return text
    end = (length - 3) // 2
    return f"{text[: length - 3 - end]}...{text[-end:]}"


def escape_controls(text: str) -> str:
    """Return ``text`` with line breaks and other control characters escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
