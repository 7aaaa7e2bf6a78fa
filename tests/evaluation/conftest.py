"""Short clips to evaluate: one synthesized from a photograph of an astronaut, and a real one if there is data."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.media.audio import write_wav
from s3dnerf.media.video import VideoWriter, stream_frames

FRAMES = 16
REAL_CLIP = "grid_uB_lwbsza"


def draw_talking_astronaut(frames: int) -> Iterator[np.ndarray]:
    """Frames uint8 [256, 256, 3] in which the head drifts and the mouth is stretched open and shut."""
    photo = astronaut()
    y, x = np.mgrid[0:256, 0:256].astype(np.float32)
    near_mouth = np.exp(-(((x - 117) / 24) ** 2) - ((y - 145) / 18) ** 2)
    for frame in range(frames):
        drift = np.float32(6.0 * np.sin(frame / 5.0))
        stretch = np.float32(7.0 * np.sin(frame * 0.9) ** 2)
        source_y = y - stretch * near_mouth * np.tanh((y - 145) / 5)
        yield cv2.remap(photo, x + 106 + drift, source_y, cv2.INTER_LINEAR)


def write_clip(path: Path, frames: Iterator[np.ndarray], count: int) -> None:
    sound = 0.1 * np.sin(np.arange(count * SAMPLES_PER_FRAME) * 0.05).astype(np.float32)
    with VideoWriter(path, (256, 256), audio=sound, crf=10) as writer:
        for frame in islice(frames, count):
            writer.write(frame)
    write_wav(path.with_suffix(".wav"), sound)


@pytest.fixture(scope="session")
def astronaut_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one mp4, `astronaut`, and its sound."""
    folder = tmp_path_factory.mktemp("astronaut_clips")
    write_clip(folder / "astronaut.mp4", draw_talking_astronaut(FRAMES), FRAMES)
    return folder


@pytest.fixture(scope="session")
def real_clips(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first second of one real clip, `real`, and its sound."""
    folder = tmp_path_factory.mktemp("real_clips")
    write_clip(folder / "real.mp4", stream_frames(shared_data / "clips" / f"{REAL_CLIP}.mp4"), 25)
    return folder
