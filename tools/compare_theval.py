"""Compare THEval's measures from prepared tracks with those from MediaPipe's own landmarks, as THEval computes them.

The tracks have the lips of two networks and poses registered by optical flow. The other side runs MediaPipe on the
frames of the same clips, and fits head angles to six of its landmarks (OpenCV's solvePnP); THEval's network of head
angles is no package. Speech is found by the energy of the sound on both sides, where THEval uses Silero VAD.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr
from tqdm import tqdm

from s3dnerf.data.clip import Clip, load_clip
from s3dnerf.data.clips import open_clips
from s3dnerf.errors import UserError
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import POINT_COUNT, spread_points
from s3dnerf.media.audio import measure_level
from s3dnerf.media.files import atomic_write
from s3dnerf.media.speech_activity import find_active_frames
from s3dnerf.metrics import measure_theval

SIDE = 256
POSE_POINTS = (1, 152, 33, 263, 61, 291)
"""Tip of the nose, chin, outer corners of the eyes, corners of the mouth."""
FLIP = np.diag([1.0, -1.0, -1.0])
"""From head space to OpenCV's camera space."""


def main(words: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=Path, default=Path("data/prepared"), help="prepared clips")
    parser.add_argument("--split", default="val")
    parser.add_argument("--max-clips", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/theval"), help="folder for theval.json")
    options = parser.parse_args(words)
    try:
        clips = open_clips(options.clips, options.split)
        chosen = clips.find_speaking(100)[: options.max_clips].tolist()
        pairs = {}
        for row in tqdm(chosen, unit="clip"):
            clip = load_clip(clips.open(row))
            pairs[clip.id] = compare_clip(clip)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with atomic_write(options.out / "theval.json") as temporary:
        known = {clip: {n: [replace_nan(v) for v in pair] for n, pair in one.items()} for clip, one in pairs.items()}
        temporary.write_text(json.dumps(known, indent=1), "utf-8")
    print(format_agreement(pairs))
    return 0


def compare_clip(clip: Clip) -> dict[str, tuple[float, float]]:
    """Return the measures of a clip with speech from its track, and from MediaPipe."""
    speech = clip.read_speech()
    is_speech = find_active_frames([speech], measure_level([speech]), clip.frames)
    tracked = to_pixels(spread_points(clip.landmarks), (SIDE, SIDE))[..., :2]
    tracked[~clip.valid] = np.nan
    rotation = Rotation.from_matrix(clip.pose.rotation).as_rotvec()
    frames = (cv2.resize(frame, (SIDE, SIDE)) for frame in clip.read_frames(range(clip.frames)))
    seen = track_by_mediapipe(frames)
    ours = measure_theval(tracked, rotation, speech, is_speech)
    theirs = measure_theval(seen, fit_angles(seen), speech, is_speech)
    return {name: (value, theirs[name]) for name, value in ours.items()}


def track_by_mediapipe(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the landmarks of frames ``uint8 [256, 256, 3]`` with THEval's settings, ``[T, 478, 2]`` in pixels."""
    found = []
    import mediapipe

    solutions = mediapipe.solutions
    with solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True) as mesh:
        for frame in frames:
            faces = mesh.process(frame).multi_face_landmarks
            points = [(point.x, point.y) for point in faces[0].landmark] if faces else [(np.nan, np.nan)] * POINT_COUNT
            found.append(points)
    return np.array(found, np.float64).reshape(-1, POINT_COUNT, 2) * SIDE


def fit_angles(landmarks: np.ndarray) -> np.ndarray:
    """Fit the rotation vectors of heads ``[T, 3]`` to landmarks in pixels, with a focal length of the frame's width."""
    head = load_canonical_face()[list(POSE_POINTS)].astype(np.float64) @ FLIP
    camera = np.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1]], np.float64)
    rotation = np.full((len(landmarks), 3), np.nan)
    for frame, points in enumerate(landmarks[:, POSE_POINTS]):
        if np.isfinite(points).all():
            start = np.zeros(3), np.array([0.0, 0.0, 4.0])
            _, turn, _ = cv2.solvePnP(head, points.copy(), camera, None, *start, useExtrinsicGuess=True)
            rotation[frame] = Rotation.from_matrix(FLIP @ cv2.Rodrigues(turn)[0] @ FLIP).as_rotvec()
    return rotation


def replace_nan(value: float) -> float | None:
    """Return a value that JSON knows."""
    return value if np.isfinite(value) else None


def format_agreement(pairs: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Return a table of the means and of the correlation over clips."""
    lines = ["| measure | tracks | MediaPipe | ratio | r | rank r | clips |", "| --- |" + " ---: |" * 6]
    for name in next(iter(pairs.values()), {}):
        both = np.array([pair[name] for pair in pairs.values()])
        both = both[np.isfinite(both).all(axis=1)]
        if len(both) < 3:
            lines.append(f"| {name} | - | - | - | - | - | {len(both)} |")
            continue
        ours, theirs = both.mean(axis=0)
        r, rank = np.corrcoef(both.T)[0, 1], spearmanr(both[:, 0], both[:, 1]).statistic
        lines.append(
            f"| {name} | {ours:.4g} | {theirs:.4g} | {ours / theirs:.3f} | {r:.3f} | {rank:.3f} | {len(both)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
