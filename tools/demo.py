"""Render outputs/demo.mp4 from a public-domain portrait of scikit-image and the shipped speech.

Also writes outputs/demo.jpg, eight frames of it, and outputs/turned.jpg, one frame from five views.
"""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
from skimage.data import astronaut

import s3dnerf
from s3dnerf.cli import main
from s3dnerf.media.image import write_image
from s3dnerf.media.video import stream_frames
from s3dnerf.pipeline import TalkingHeadPipeline

PORTRAIT, VIDEO, SHEET, TURNED = (
    Path("outputs") / name for name in ("astronaut.png", "demo.mp4", "demo.jpg", "turned.jpg")
)
SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


def draw_sheet(video: Path, columns: int = 4, rows: int = 2) -> np.ndarray:
    """Return a grid of evenly spaced frames of a video."""
    frames = list(stream_frames(video))
    moments = np.linspace(0, len(frames) - 1, columns * rows).round().astype(int)
    shown = np.stack([frames[moment] for moment in moments]).reshape(rows, columns, *frames[0].shape)
    return np.concatenate(np.concatenate(shown, axis=1), axis=1)


def draw_sides(moment: int = 20, sides: tuple[int, ...] = (-20, -10, 0, 10, 20)) -> np.ndarray:
    """Return one frame of the demo with the head turned by each of ``sides``, degrees to the viewer's right."""
    pipeline = TalkingHeadPipeline.from_pretrained()
    videos = [pipeline(PORTRAIT, SPEECH, turn=(side, 0)) for side in sides]
    return np.concatenate([next(islice(video, moment, None)) for video in videos], axis=1)


if __name__ == "__main__":
    write_image(PORTRAIT, astronaut())
    words = ["render", "--image", str(PORTRAIT), "--audio", str(SPEECH), "--out", str(VIDEO)]
    code = main([*words, *sys.argv[1:]])
    if code == 0:
        write_image(SHEET, draw_sheet(VIDEO))
        write_image(TURNED, draw_sides())
    sys.exit(code)
