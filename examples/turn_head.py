"""Turn the head: one frame of an utterance, seen from several sides, as one picture.

python examples/turn_head.py portrait.png speech.wav sides.png
"""

import sys
from itertools import islice

import numpy as np
from PIL import Image

from s3dnerf import TalkingHeadPipeline

DEGREES = (-20, 0, 20)
"""Turns to the viewer's right; the quality is good up to about 20 degrees."""


def main(image: str, audio: str, out: str, frame: int = 10) -> None:
    """Write frame number ``frame`` with the head turned by each of ``DEGREES``, side by side, to ``out``."""
    pipeline = TalkingHeadPipeline.from_pretrained()
    videos = [pipeline(image, audio, pose="static", turn=(degrees, 0)) for degrees in DEGREES]
    views = [next(islice(video, frame, None)) for video in videos]
    Image.fromarray(np.concatenate(views, axis=1)).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
