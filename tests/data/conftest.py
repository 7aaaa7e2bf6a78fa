"""Fixtures of the tests of preparation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3dnerf.data import prepare
from s3dnerf.data.videos import VideoEntry


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Prepare in this process: starting another one takes longer than the work of most tests."""

    def run(todo: list[VideoEntry], out: Path, size: int, workers: int) -> Iterator[tuple[VideoEntry, str | None]]:
        return ((entry, prepare._try_clip(entry, out, size)) for entry in todo)

    monkeypatch.setattr(prepare, "_run", run)
