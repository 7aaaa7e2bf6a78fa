"""The line that a user reads, and its way through processes."""

from __future__ import annotations

import pickle
from pathlib import Path

from s3dnerf.errors import UserError


def test_message_names_subject_reason_and_cure() -> None:
    error = UserError(Path("a/b.wav"), "is silent", "Use a recording of speech.")
    assert str(error) == "a/b.wav: is silent. Use a recording of speech."
    assert (error.subject, error.reason, error.cure) == ("a/b.wav", "is silent", "Use a recording of speech.")


def test_survives_the_border_of_a_process() -> None:
    error = UserError("a.wav", "is silent", "Speak.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert str(copy) == str(error)
