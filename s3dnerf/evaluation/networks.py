"""Scores by public networks: LPIPS, CSIM, FID's features, LSE-C and LSE-D. Videos stream through them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from s3dnerf.evaluation.scores import average_known
from s3dnerf.evaluation.tracking import FaceTrack, measured_size
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import measure_sync, syncnet
from s3dnerf.metrics.identity import FACE_POINTS, IResNet, align_face, embed_faces, load_arcface, measure_csim
from s3dnerf.metrics.inception import extract_features, load_inception
from s3dnerf.metrics.lpips import load_lpips, measure_lpips
from s3dnerf.metrics.syncnet import SyncNet, load_syncnet


@dataclass(frozen=True)
class Sight:
    """What networks see in a video, a row a frame without the first, which is not judged; None without the network."""

    identity: np.ndarray | None
    """Embeddings of faces, float32 [T - 1, 512]; NaN where no face was seen."""
    features: np.ndarray | None
    """Inception's features, float32 [T - 1, 2048]."""


@dataclass(frozen=True)
class RealClip:
    """What networks see and hear in a real clip."""

    sight: Sight
    speech: np.ndarray | None
    """SyncNet's embeddings of the speech, float32 [N, 1024]."""


@dataclass(frozen=True)
class NetworkScores:
    """What networks say of one made clip."""

    scores: dict[str, float] = field(default_factory=dict)
    """By the names of `Scores`; only those that were measured."""
    features: np.ndarray | None = None
    """Inception's features, float32 [T - 1, 2048]."""


class NetworkJudge:
    """The networks whose files are named in `paths`, score to files (see `find_weights`).

    Raises UserError for a file that is broken or holds another network.
    """

    def __init__(self, paths: Mapping[str, tuple[Path, ...]], device: torch.device) -> None:
        trunks = {score: trunk for score, trunk in (("lpips", "alex"), ("lpips_vgg", "vgg")) if score in paths}
        self._lpips = {score: load_lpips(trunk, *paths[score]).to(device) for score, trunk in trunks.items()}
        self._arcface = load_arcface(*paths["csim"]).to(device) if "csim" in paths else None
        self._inception = load_inception(*paths["fid"]).to(device) if "fid" in paths else None
        self._syncnet = load_syncnet(*paths["lse_c"]).to(device) if "lse_c" in paths else None

    def study(self, real: Iterable[np.ndarray], track: FaceTrack, speech: np.ndarray) -> RealClip:
        """See a real clip, uint8 [H, W, 3] a frame, and hear its speech [n] (16 kHz), once for all its rows."""
        eye = _Eye(self._arcface, self._inception, track)
        for index, frame in enumerate(real):
            eye.add(_scale(frame), index)
        if self._syncnet is None:
            return RealClip(eye.finish(), None)
        count = syncnet.count_windows(len(track), len(speech))
        return RealClip(eye.finish(), syncnet.embed_speech(self._syncnet, speech, count))

    def judge(
        self, real: Iterable[np.ndarray], made: Iterable[np.ndarray], clip: RealClip, made_track: FaceTrack
    ) -> NetworkScores:
        """Compare made frames with real ones, both streams of uint8 [H, W, 3] of equal length, frame by frame."""
        eye = _Eye(self._arcface, self._inception, made_track)
        reader = _LipReader(self._syncnet, made_track)
        distances: dict[str, list[float]] = {score: [] for score in self._lpips}
        for index, (a, b) in enumerate(zip(real, made, strict=True)):
            a, b = _scale(a), _scale(b[: a.shape[0], : a.shape[1]])
            eye.add(b, index)
            reader.add(b)
            for score, network in self._lpips.items() if index else ():
                distances[score].append(float(measure_lpips(network, a[None], b[None])[0]))
        sight = eye.finish()
        scores = {score: float(np.mean(values)) for score, values in distances.items()}
        if sight.identity is not None:
            scores["csim"] = average_known(measure_csim(clip.sight.identity, sight.identity))
        if clip.speech is not None:
            lips = reader.finish()[: len(clip.speech)]
            sync = measure_sync(lips, clip.speech[: len(lips)])
            scores |= {"lse_c": sync.confidence, "lse_d": sync.distance}
        return NetworkScores(scores, sight.features)


class _Eye:
    """Collects the `Sight` of a video whose track is known."""

    def __init__(self, arcface: IResNet | None, inception: torch.nn.Module | None, track: FaceTrack) -> None:
        self._arcface, self._inception, self._track = arcface, inception, track
        self._identity: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, frame: np.ndarray, index: int) -> None:
        if index == 0:
            return
        if self._arcface is not None:
            self._identity.append(self._embed_face(frame, index))
        if self._inception is not None:
            self._features.append(extract_features(self._inception, frame[None])[0])

    def finish(self) -> Sight:
        return Sight(*(np.stack(rows) if rows else None for rows in (self._identity, self._features)))

    def _embed_face(self, frame: np.ndarray, index: int) -> np.ndarray:
        if not self._track.found[index]:
            return np.full(512, np.nan, np.float32)
        points = to_pixels(self._track.fine[index], self._track.size)[list(FACE_POINTS), :2]
        return embed_faces(self._arcface, align_face(frame, points)[None])[0]


class _LipReader:
    """Embeds every five frames in a row; holds no more pictures than these."""

    def __init__(self, network: SyncNet | None, track: FaceTrack) -> None:
        self._network = network if track.found.any() else None
        self._faces: deque[np.ndarray] = deque(maxlen=syncnet.WINDOW_FRAMES)
        self._lips: list[np.ndarray] = []
        if self._network is not None:
            self._boxes = iter(syncnet.place_boxes(to_pixels(track.filled, track.size)[..., :2]))

    def add(self, frame: np.ndarray) -> None:
        if self._network is None:
            return
        self._faces.append(syncnet.crop_face(frame, next(self._boxes)))
        if len(self._faces) == self._faces.maxlen:
            self._lips.append(syncnet.embed_faces(self._network, np.stack(self._faces)))

    def finish(self) -> np.ndarray:
        """float32 [N, 1024]; empty if no face was seen."""
        return np.stack(self._lips) if self._lips else np.zeros((0, 1024), np.float32)


def _scale(frame: np.ndarray) -> np.ndarray:
    return resize_image(frame, measured_size(frame))
