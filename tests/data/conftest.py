"""Fixtures of the data tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3dnerf.data import prepare
from s3dnerf.data.batch import BatchContent
from s3dnerf.data.clip import list_clips
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.prepare import ClipJob
from s3dnerf.data.shards import measure_sample, write_shards
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.data.videos import VideoEntry

SIZE, WINDOW, BATCH_SIZE = 64, 7680, 4


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Prepare clips in this process: starting another one takes longer than the work of most tests."""

    def run(todo: list[VideoEntry], job: ClipJob, workers: int) -> Iterator[tuple[VideoEntry, str | None]]:
        return ((entry, prepare.prepare_entry(entry, job)) for entry in todo)

    monkeypatch.setattr(prepare, "run_jobs", run)


@pytest.fixture(scope="session")
def make_dataset(drawn_clips: Path, one_thread: None) -> Callable[..., TalkingFaceDataset]:
    """Make data sets of the drawn clips; keyword arguments are settings."""

    def make(
        split: str = "train",
        root: str | Path = drawn_clips,
        seed: int = 0,
        augment: bool = True,
        batch_size: int = BATCH_SIZE,
        size: int = SIZE,
        select: Callable[[str], bool] = lambda person: True,
        content: Callable[[int], BatchContent] | None = None,
        **settings: object,
    ) -> TalkingFaceDataset:
        config = DataConfig(
            root=str(root), frames=2, sequences=2, sequence_frames=8, augment=augment, **{"cache_gb": 0.1, **settings}
        )
        return TalkingFaceDataset(config, split, size, WINDOW, batch_size, seed, select, content)

    return make


@pytest.fixture(scope="session")
def shards(drawn_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn clips as two shards of the train split and one of the val split."""
    out = tmp_path_factory.mktemp("shards")
    size = max(measure_sample(folder) for folder in list_clips(drawn_clips, "train"))
    write_shards(drawn_clips, out, 2 * size)
    return out


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.fixture(scope="session")
def plain(make_dataset: Callable[..., TalkingFaceDataset]) -> TalkingFaceDataset:
    """The train split without augmentation."""
    return make_dataset(augment=False)


@pytest.fixture(scope="session")
def tracks(plain: TalkingFaceDataset) -> list[ClipTrack]:
    """The tracks of the train split: ann_0, ann_1 and ben_0."""
    return [plain.clips.load_track(row) for row in range(len(plain.clips))]
