"""Benchmark a method of your own, and one that is wrong on purpose, against real clips.

    s3dnerf benchmark-method examples/benchmark_your_method.py:LandmarkWarp --real DIR --out outputs/warp

runs the class below. This script runs it too, makes the wrong videos, and prints the table of both:

python examples/benchmark_your_method.py DIR outputs/benchmark
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from scipy.interpolate import LinearNDInterpolator

from s3dnerf.evaluation.benchmark_method import run_method
from s3dnerf.evaluation.protocol import CRF, pair_speech
from s3dnerf.evaluation.score import RealClips, score_videos
from s3dnerf.evaluation.score_jobs import ScoreSettings
from s3dnerf.evaluation.score_report import ScoreReport
from s3dnerf.evaluation.scorer import find_sound
from s3dnerf.face.camera import HeadPose, align_depth, fit_head_pose, project, to_head_space
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.points import LIPS_INNER
from s3dnerf.face.search import detect_faces
from s3dnerf.media.audio import read_speech
from s3dnerf.media.video import VideoWriter, stream_frames
from s3dnerf.metrics import measure_loudness

JAW_DROP = 0.12
"""How far the loudest speech moves the lower lip and the chin, in head units."""
GRID = 48
"""The flow is computed on a grid of this many points a side."""


class LandmarkWarp:
    """Warps the portrait by its own landmarks: they follow the poses, and the lower lip follows the loudness."""

    def reenact(self, image: np.ndarray, audio: np.ndarray, poses: HeadPose) -> Iterator[np.ndarray]:
        """Yield the frames ``uint8 [H, W, 3]``."""
        height, width = image.shape[:2]
        found = to_pixels(detect_faces(image)[0], (height, width))[None]
        pose = fit_head_pose(found)
        face = to_head_space(align_depth(found, pose), pose)[0]
        level = measure_loudness(audio, len(poses))
        level = cv2.GaussianBlur(level[:, None], (1, 5), 0)[:, 0] / np.percentile(level, 95).clip(1e-6)
        # Points below the middle of the lips move down, the lower ones of them together.
        middle = face[list(LIPS_INNER), 1].mean()
        share = np.clip((middle - face[:, 1]) / 0.1, 0.0, 1.0) * np.exp(-((face[:, 0] / 0.5) ** 2))
        fixed = make_border(width, height)
        source = np.concatenate([found[0, :468, :2], fixed])
        rows, columns = np.linspace(0, height - 1, GRID), np.linspace(0, width - 1, GRID)
        places = np.stack(np.meshgrid(columns, rows), axis=-1)
        for index in range(len(poses)):
            moved = face - np.outer(share * JAW_DROP * level[index].clip(0, 1), [0.0, 1.0, 0.0])
            target = project(moved[None], poses[index : index + 1])[0, :468, :2]
            # Where each pixel of the frame comes from: known at the landmarks, linear between them.
            flow = LinearNDInterpolator(np.concatenate([target, fixed]), source)(places).astype(np.float32)
            full = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
            yield cv2.remap(image, full[..., 0], full[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def make_border(width: int, height: int) -> np.ndarray:
    """Return points on the border of a frame, which do not move, ``[N, 2]``."""
    x, y = np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)
    edges = [(x, 0 * x), (x, 0 * x + height - 1), (0 * y, y), (0 * y + width - 1, y)]
    return np.concatenate([np.stack(edge, axis=1) for edge in edges])


def write_wrong_sound(real: RealClips, out: Path, max_frames: int | None = None) -> None:
    """Write the right video with the sound of another person's clip: wrong on purpose."""
    clips = real.find()
    sounds = pair_speech(clips, real.read_manifest())
    for clip in clips:
        frames = islice(stream_frames(clip), max_frames)
        first = next(frames)
        sound = find_sound(sounds[clip.stem])
        assert sound is not None, "clips of this example have sound"
        height, width = first.shape[:2]
        with VideoWriter(out / f"{clip.stem}.mp4", (width, height), audio=read_speech(sound), crf=CRF) as writer:
            writer.write(first)
            for frame in frames:
                writer.write(frame)


def benchmark(real: RealClips, out: Path, max_frames: int | None = None, workers: int = 2) -> ScoreReport:
    """Run the method, write the wrong videos, and score both."""
    settings = ScoreSettings(max_frames=max_frames)
    failed = run_method(LandmarkWarp, real, out / "landmark_warp", settings, out / "errors")
    for clip, reason in failed.items():
        print(f"{clip}: {reason}")
    write_wrong_sound(real, out / "wrong_sound", max_frames)
    return score_videos(out / "wrong_sound", real, out / "scores", [out / "landmark_warp"], settings, workers)


def main(real: str, out: str, workers: int = 2) -> None:
    """Print the table of both methods."""
    print(benchmark(RealClips(Path(real)), Path(out), workers=workers).format_summary())


if __name__ == "__main__":
    main(*sys.argv[1:3])
