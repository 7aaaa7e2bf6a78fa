"""The clips that an interrupted evaluation has finished: what the next one needs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import s3dnerf
from s3dnerf.evaluation.protocol import hash_file
from s3dnerf.evaluation.score_file import read_scores, write_scores
from s3dnerf.evaluation.scores import Scores
from s3dnerf.media.files import atomic_write
from s3dnerf.media.image import read_image, write_image

TARGET = "target"
"""Name of the features of the target frames, which no row has."""


@dataclass(frozen=True)
class FinishedClip:
    """Results of a clip."""

    scores: dict[str, Scores]
    """Scores by row."""
    sheet: np.ndarray
    """``uint8 [H, W, 3]`` contact sheet."""
    features: dict[str, np.ndarray] = field(default_factory=dict)
    """Inception features ``float32 [T - 1, 2048]`` of each row and of :data:`TARGET`; empty without Inception."""


class FinishedClips:
    """Keeps OUT/finished/<clip>.json, with scores, and .npy, with features, beside OUT/sheets/<clip>.png."""

    def __init__(self, out: Path, settings: Mapping[str, object], rows: Sequence[str], has_features: bool) -> None:
        """Name the folder and what results must have been made with.

        Args:
            out: output folder of the evaluation.
            settings: those that scores depend on.
            rows: rows that a finished clip has.
            has_features: whether it has features, too.
        """
        self.out, self.settings, self.rows, self.has_features = out, settings, rows, has_features

    def read(self, video: Path) -> FinishedClip | None:
        """Return the results of a clip; None if it is not finished, or was made with other settings, files or rows."""
        scores = read_scores(self._path(video, "json"), self._describe(video))
        if not set(self.rows) <= set(scores) or not self._sheet(video).is_file():
            return None
        features: dict[str, np.ndarray] = {}
        if self.has_features:
            if not self._path(video, "npy").is_file():
                return None
            known = np.load(self._path(video, "npy"), allow_pickle=False)
            features = dict(zip((TARGET, *scores), known, strict=True))
        return FinishedClip({row: scores[row] for row in self.rows}, read_image(self._sheet(video)), features)

    def write(self, video: Path, result: FinishedClip) -> None:
        """Keep the results of a clip. The scores are written last: with them, it is finished."""
        write_image(self._sheet(video), result.sheet)
        if result.features:
            with atomic_write(self._path(video, "npy")) as part, part.open("wb") as file:
                np.save(file, np.stack([result.features[row] for row in (TARGET, *result.scores)]), allow_pickle=False)
        write_scores(self._path(video, "json"), self._describe(video), result.scores)

    def forget(self, video: Path) -> None:
        """Remove what is kept of a clip, apart from its sheet."""
        for kind in ("json", "npy"):
            self._path(video, kind).unlink(missing_ok=True)

    def _describe(self, video: Path) -> dict[str, object]:
        files = [path for path in (video, video.with_suffix(".wav")) if path.is_file()]
        return {**self.settings, "files": {path.name: hash_file(path) for path in files}}

    def _path(self, video: Path, kind: str) -> Path:
        return self.out / "finished" / f"{video.stem}.{kind}"

    def _sheet(self, video: Path) -> Path:
        return self.out / "sheets" / f"{video.stem}.png"


def hash_checkpoint(checkpoint: str | Path | None) -> dict[str, str]:
    """Return the SHA-256 of each file of a model: the shipped one, or a folder. Empty for a hub id."""
    folder = Path(s3dnerf.__file__).parent / "weights" / "base" if checkpoint is None else Path(checkpoint)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    return {path.name: hash_file(path) for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))}
