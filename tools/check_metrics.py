"""State how metrics behave on real clips, for the documentation.

THEval's measures from prepared tracks are compared with those from MediaPipe's own landmarks, as THEval computes them.
The tracks have the lips of two networks and poses registered by optical flow. The other side runs MediaPipe on the
frames of the same clips, and fits head angles to six of its landmarks (OpenCV's solvePnP); THEval's network of head
angles is no package. Speech is found by the energy of the sound on both sides, where THEval uses Silero VAD.

Lips and sound are compared with those of other clips as well, and faces with those of other people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from s3dnerf.data.clip import Clip, load_clip
from s3dnerf.data.clips import open_clips
from s3dnerf.errors import UserError
from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import POINT_COUNT, spread_points
from s3dnerf.face.rotation import matrix_to_rotvec
from s3dnerf.media.audio import measure_level
from s3dnerf.media.files import atomic_write
from s3dnerf.media.speech_activity import find_active_frames
from s3dnerf.metrics import (
    measure_lip_warping,
    measure_loudness,
    measure_loudness_mismatch,
    measure_mouth_openness,
    measure_theval,
)
from s3dnerf.metrics.face_descriptor import FaceDescriptor, has_face_descriptor, measure_identity_distance
from s3dnerf.metrics.identity import measure_csim

SIDE = 256
MIN_FRAMES = 100
OTHERS = 3
"""Other clips that each clip is compared with."""
LATE = 3
LATER_FRAMES = 4
"""Frames of a clip whose face is compared with that of the first."""
POSE_POINTS = (1, 152, 33, 263, 61, 291)
"""Tip of the nose, chin, outer corners of the eyes, corners of the mouth."""
FLIP = np.diag([1.0, -1.0, -1.0])
"""From head space to OpenCV's camera space."""


def main(words: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=Path, default=Path("data/prepared"), help="prepared clips")
    parser.add_argument("--split", default="val")
    parser.add_argument("--max-clips", type=int, default=20, help="use the first of them")
    parser.add_argument("--out", type=Path, default=Path("outputs/metrics"), help="folder for metrics.md")
    options = parser.parse_args(words)
    try:
        clips = open_clips(options.clips, options.split)
        speaking = [load_clip(clips.open(row)) for row in clips.find_speaking(MIN_FRAMES)[: options.max_clips].tolist()]
        measured = [compare_clip(clip) for clip in tqdm(speaking, "THEval", unit="clip")]
        parts = [format_agreement(measured), *compare_others(speaking)]
        if has_face_descriptor():
            everyone = [load_clip(clips.open(row)) for row in range(min(len(clips), options.max_clips))]
            parts.append(compare_people(everyone))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    report = "\n\n".join(parts)
    with atomic_write(options.out / "metrics.md") as temporary:
        temporary.write_text(report + "\n", "utf-8")
    print(report)
    return 0


def compare_clip(clip: Clip) -> dict[str, tuple[float, float]]:
    """Return THEval's measures of a clip with speech from its track, and from MediaPipe."""
    speech, is_speech = read_sound(clip)
    frames = (cv2.resize(frame, (SIDE, SIDE)) for frame in clip.read_frames(range(clip.frames)))
    seen = track_by_mediapipe(frames)
    ours = measure_theval(read_track(clip), matrix_to_rotvec(clip.pose.rotation), speech, is_speech)
    theirs = measure_theval(seen, fit_angles(seen), speech, is_speech)
    return {name: (value, theirs[name]) for name, value in ours.items()}


def read_sound(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Return the speech of a clip, and the frames with voice."""
    speech = clip.read_speech()
    return speech, find_active_frames([speech], measure_level([speech]), clip.frames)


def read_track(clip: Clip) -> np.ndarray:
    """Return the tracked landmarks of a clip in pixels, ``[T, 478, 2]``, NaN without a face."""
    points = to_pixels(spread_points(clip.landmarks), (SIDE, SIDE))[..., :2]
    points[~clip.valid] = np.nan
    return points


def track_by_mediapipe(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the landmarks of frames ``uint8 [256, 256, 3]`` with THEval's settings, ``[T, 478, 2]`` in pixels."""
    found = []
    try:
        import mediapipe
    except ModuleNotFoundError as error:
        hint = 'Run `pip install --no-deps mediapipe==0.10.21 absl-py flatbuffers matplotlib "protobuf<5"`.'
        raise UserError("mediapipe", "is not installed; its landmarks are what ours are compared with", hint) from error

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
            rotation[frame] = matrix_to_rotvec(FLIP @ cv2.Rodrigues(turn)[0] @ FLIP)
    return rotation


def format_agreement(measured: list[dict[str, tuple[float, float]]]) -> str:
    """Return a table of the means by tracks and by MediaPipe, and of their correlation over clips."""
    lines = ["| measure | tracks | MediaPipe | ratio | r | rank r | clips |", "| --- |" + " ---: |" * 6]
    for name in measured[0] if measured else ():
        both = np.array([pairs[name] for pairs in measured])
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


def compare_others(clips: list[Clip]) -> list[str]:
    """Compare the lips of clips with their own sound and lips, and with those of other clips."""
    sounds, openings = [read_sound(clip) for clip in clips], [clip.lip_opening for clip in clips]
    openness = [measure_mouth_openness(read_track(clip)) for clip in clips]
    mismatch: dict[str, list[float]] = {"its own sound": [], "another sound": [], "still lips": []}
    warping: dict[str, list[float]] = {f"{LATE} frames late": [], "another clip in the same range": []}
    for index, (speech, is_speech) in enumerate(sounds):
        loudness = measure_loudness(speech, len(is_speech))
        mismatch["its own sound"].append(measure_loudness_mismatch(openness[index], loudness, is_speech))
        mismatch["still lips"].append(measure_loudness_mismatch(np.zeros(len(loudness)), loudness, is_speech))
        warping[f"{LATE} frames late"].append(measure_lip_warping(openings[index][LATE:], openings[index][:-LATE]))
        for other in list_others(index, len(clips)):
            count = min(clips[index].frames, clips[other].frames)
            foreign = measure_loudness(sounds[other][0], count), sounds[other][1][:count]
            mismatch["another sound"].append(measure_loudness_mismatch(openness[index][:count], *foreign))
            one, two = openings[index][:count], openings[other][:count]
            scaled = (two - two.mean()) / two.std() * one.std() + one.mean()
            warping["another clip in the same range"].append(measure_lip_warping(one, scaled))
    return [format_means("loudness mismatch", mismatch), format_means("lip warping", warping)]


def list_others(index: int, count: int) -> Iterator[int]:
    """Return the numbers of the next clips."""
    yield from ((index + step) % count for step in range(1, min(OTHERS, count - 1) + 1))


def compare_people(clips: list[Clip]) -> str:
    """Compare the face in the first frame of each person with later frames, and with other people."""
    descriptor = FaceDescriptor()
    firsts = {clip.person: clip for clip in reversed(clips)}
    vectors = []
    for clip in tqdm(firsts.values(), "people", unit="person"):
        chosen = np.linspace(0, clip.frames - 1, LATER_FRAMES + 1).astype(int)
        points = to_pixels(spread_points(clip.landmarks[chosen]), (clip.size, clip.size))
        vectors.append(descriptor.embed_frames(clip.read_frames(chosen), points))
    first = np.stack([one[0] for one in vectors])
    one, two = np.triu_indices(len(first), 1)
    own = np.repeat(first, LATER_FRAMES, axis=0), np.concatenate([one[1:] for one in vectors])
    pairs = {"later frames of the clip": own, "other people": (first[one], first[two])}
    parts = [
        format_means("distance of faces", {name: measure_identity_distance(*pair) for name, pair in pairs.items()}),
        format_means("cosine of faces", {name: measure_csim(*pair) for name, pair in pairs.items()}),
    ]
    return "\n\n".join(parts)


def format_means(title: str, values: dict[str, list[float]] | dict[str, np.ndarray]) -> str:
    """Return a table of mean, least and largest value."""
    lines = [f"| {title} | mean | least | largest | number |", "| --- |" + " ---: |" * 4]
    for name, one in values.items():
        known = np.array(one)[np.isfinite(one)]
        cells = [f"{value:.3f}" for value in (known.mean(), known.min(), known.max())] if len(known) else ["-"] * 3
        lines.append(f"| {name} | {' | '.join(cells)} | {len(known)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
