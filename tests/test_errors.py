"""UserError: its message, and pickling between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

from s3dnerf.errors import ArgumentError, UserError


def test_message_names_subject_reason_and_cure() -> None:
    error = UserError(Path("a/b.wav"), "is silent", "Use a recording of speech.")
    assert str(error) == "a/b.wav: is silent. Use a recording of speech."
    assert (error.subject, error.reason, error.hint) == ("a/b.wav", "is silent", "Use a recording of speech.")


def test_survives_the_border_of_a_process() -> None:
    error = UserError("a.wav", "is silent", "Speak.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert str(copy) == str(error)


def test_arguments_are_named_as_options_by_the_command_line() -> None:
    error = ArgumentError("fit_steps", -1, "is too small", "Use 0 or more.")
    assert str(error) == "fit_steps -1: is too small. Use 0 or more."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ArgumentError and str(copy) == str(error)
    assert str(copy.to_option()) == "--fit-steps -1: is too small. Use 0 or more."
    assert str(ArgumentError("rows", None, "none given", "Name one.").to_option()) == "--rows: none given. Name one."
