"""Scores that need public pretrained networks: LPIPS, CSIM, FID, LSE-C and LSE-D. Videos are streamed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from s3dnerf.evaluation.scores import mean_ignoring_nan
from s3dnerf.evaluation.tracking import FaceTrack, evaluation_size
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import measure_lse, syncnet
from s3dnerf.metrics.identity import FACE_POINTS, IResNet, align_face, embed_faces, load_arcface, measure_csim
from s3dnerf.metrics.inception import FIDInception, extract_features, load_inception
from s3dnerf.metrics.lpips import load_lpips, measure_lpips
from s3dnerf.metrics.syncnet import SyncNet, load_syncnet


@dataclass(frozen=True)
class VideoFeatures:
    """Features of a video, one row per frame except the first; None without the weights of the network."""

    identity: np.ndarray | None
    """ArcFace embeddings, ``float32 [T - 1, 512]``; NaN in frames without a face."""
    features: np.ndarray | None
    """Inception features, ``float32 [T - 1, 2048]``."""


@dataclass(frozen=True)
class TargetFeatures:
    """Features of a target clip."""

    features: VideoFeatures
    speech: np.ndarray | None
    """SyncNet embeddings of the speech, ``float32 [N, 1024]``."""

    def cut(self, frames: int) -> TargetFeatures:
        """Return the features of the first frames."""
        parts = (self.features.identity, self.features.features)
        cut = (None if part is None else part[: frames - 1] for part in parts)
        return TargetFeatures(VideoFeatures(*cut), self.speech)


@dataclass(frozen=True)
class NetworkScores:
    """Scores of one generated clip."""

    scores: dict[str, float] = field(default_factory=dict)
    """Measured scores by their names in ``Scores``."""
    features: np.ndarray | None = None
    """Inception features, ``float32 [T - 1, 2048]``."""


class PretrainedMetrics:
    """Pretrained networks and the scores that they give.

    Args:
        paths: files of weights by score, see ``find_weights``.
        device: where the networks run.

    Raises:
        UserError: a file is broken or belongs to another network.
    """

    def __init__(self, paths: Mapping[str, tuple[Path, ...]], device: torch.device) -> None:
        trunks: dict[str, Literal["alex", "vgg"]] = {"lpips": "alex", "lpips_vgg": "vgg"}
        self._lpips = {
            score: load_lpips(trunk, *paths[score]).to(device) for score, trunk in trunks.items() if score in paths
        }
        self._arcface = load_arcface(*paths["csim"]).to(device) if "csim" in paths else None
        self._inception = load_inception(*paths["fid"]).to(device) if "fid" in paths else None
        self._syncnet = load_syncnet(*paths["lse_c"]).to(device) if "lse_c" in paths else None

    def encode_target(
        self, target: Iterable[np.ndarray], track: FaceTrack, speech: np.ndarray | None
    ) -> TargetFeatures:
        """Encode the frames ``uint8 [H, W, 3]`` and 16 kHz speech ``[n]`` of a target clip, once for all its rows."""
        extractor = _FeatureExtractor(self._arcface, self._inception, track)
        for index, frame in enumerate(target):
            extractor.add(_scale(frame), index)
        return TargetFeatures(extractor.finish(), self.encode_speech(speech, len(track)))

    def encode_speech(self, speech: np.ndarray | None, frames: int) -> np.ndarray | None:
        """Encode the 16 kHz speech ``[n]`` of a clip of T frames for LSE; None without speech or without SyncNet."""
        if self._syncnet is None or speech is None:
            return None
        return syncnet.embed_speech(self._syncnet, speech, syncnet.count_windows(frames, len(speech)))

    def measure(
        self,
        target: Iterable[np.ndarray],
        generated: Iterable[np.ndarray],
        reference: TargetFeatures,
        generated_track: FaceTrack,
    ) -> NetworkScores:
        """Score a stream of generated frames against the target frames, ``uint8 [H, W, 3]`` and as many."""
        extractor = _FeatureExtractor(self._arcface, self._inception, generated_track)
        lip_embedder = _LipEmbedder(self._syncnet, generated_track)
        distances: dict[str, list[float]] = {score: [] for score in self._lpips}
        for index, (a, b) in enumerate(zip(target, generated, strict=True)):
            a, b = _scale(a), _scale(b[: a.shape[0], : a.shape[1]])
            extractor.add(b, index)
            lip_embedder.add(b)
            for score, network in self._lpips.items() if index else ():
                distances[score].append(float(measure_lpips(network, a[None], b[None])[0]))
        features = extractor.finish()
        scores = {score: float(np.mean(values)) for score, values in distances.items()}
        if features.identity is not None:
            assert reference.features.identity is not None, "target and generated frames have the same features"
            scores["csim"] = mean_ignoring_nan(measure_csim(reference.features.identity, features.identity))
        if reference.speech is not None:
            lips = lip_embedder.finish()[: len(reference.speech)]
            sync = measure_lse(lips, reference.speech[: len(lips)])
            scores |= {"lse_c": sync.confidence, "lse_d": sync.distance}
        return NetworkScores(scores, features.features)


class _FeatureExtractor:
    """Accumulates the ``VideoFeatures`` of a tracked video."""

    def __init__(self, arcface: IResNet | None, inception: FIDInception | None, track: FaceTrack) -> None:
        self._arcface, self._inception, self._track = arcface, inception, track
        self._identity: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, frame: np.ndarray, index: int) -> None:
        if index == 0:
            return
        if self._arcface is not None:
            self._identity.append(self._embed_face(self._arcface, frame, index))
        if self._inception is not None:
            self._features.append(extract_features(self._inception, frame[None])[0])

    def finish(self) -> VideoFeatures:
        return VideoFeatures(*(np.stack(rows) if rows else None for rows in (self._identity, self._features)))

    def _embed_face(self, arcface: IResNet, frame: np.ndarray, index: int) -> np.ndarray:
        if not self._track.found[index]:
            return np.full(512, np.nan, np.float32)
        points = to_pixels(self._track.fine[index], self._track.size)[list(FACE_POINTS), :2]
        return embed_faces(arcface, align_face(frame, points)[None])[0]


class _LipEmbedder:
    """Embeds every window of five consecutive frames, keeping no more frames than these."""

    def __init__(self, network: SyncNet | None, track: FaceTrack) -> None:
        self._network = network if track.found.any() else None
        self._faces: deque[np.ndarray] = deque(maxlen=syncnet.WINDOW_FRAMES)
        self._lips: list[np.ndarray] = []
        if self._network is not None:
            self._boxes = iter(syncnet.compute_boxes(to_pixels(track.filled, track.size)[..., :2]))

    def add(self, frame: np.ndarray) -> None:
        if self._network is None:
            return
        self._faces.append(syncnet.crop_face(frame, next(self._boxes)))
        if len(self._faces) == self._faces.maxlen:
            self._lips.append(syncnet.embed_faces(self._network, np.stack(self._faces)))

    def finish(self) -> np.ndarray:
        """Return ``float32 [N, 1024]``; empty if the video shows no face."""
        return np.stack(self._lips) if self._lips else np.zeros((0, 1024), np.float32)


def _scale(frame: np.ndarray) -> np.ndarray:
    return resize_image(frame, evaluation_size(frame))
