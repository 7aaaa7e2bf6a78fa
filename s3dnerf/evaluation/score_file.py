"""Scores that were measured before, in a file with the settings that they were measured with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3dnerf.errors import UserError
from s3dnerf.evaluation.scores import Scores
from s3dnerf.media.files import atomic_write


def write_scores(path: Path, settings: Mapping[str, object], scores: Mapping[str, Scores]) -> None:
    """Write scores by row, and the settings, which JSON must be able to hold.

    NaN and infinity become strings, so that they differ from scores that were not measured, which are null.
    """
    texts = {row: {name: _encode(value) for name, value in one.as_dict().items()} for row, one in scores.items()}
    tree = {"settings": settings, "scores": texts}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")


def read_scores(path: Path, settings: Mapping[str, object]) -> dict[str, Scores]:
    """Read the file of :func:`write_scores`; empty if it is missing or was written with other settings.

    Raises:
        UserError: the file is broken.
    """
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
        if tree.get("settings") != settings:
            return {}
        return {row: _decode(texts) for row, texts in tree["scores"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(path, f"is broken ({error})", "Delete it; what it holds will be measured again.") from error


def _decode(texts: Mapping[str, Any]) -> Scores:
    numbers: dict[str, Any] = {name: None if value is None else float(value) for name, value in texts.items()}
    return Scores(**numbers)


def _encode(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
