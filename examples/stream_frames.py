"""Stream frames: use each one as soon as it is rendered, and continue with the next utterance without a jump.

python examples/stream_frames.py portrait.png hello.wav goodbye.wav
"""

import sys
import time
from collections.abc import Iterator

import numpy as np

from s3dnerf import TalkingHeadPipeline


def stream(image: str, *utterances: str) -> Iterator[np.ndarray]:
    """Yield ``uint8 [height, width, 3]`` frames, 25 per second of speech, of all utterances in a row."""
    pipeline = TalkingHeadPipeline.from_pretrained()
    state = None
    for audio in utterances:
        video = pipeline(image, audio, start=state)
        yield from video
        state = video.end_state


def main(image: str, *utterances: str) -> None:
    """Show how long the first frame and the others take; a player would display them instead."""
    begin = time.perf_counter()
    for index, frame in enumerate(stream(image, *utterances)):
        if index == 0:
            print(f"first frame of {frame.shape[1]} x {frame.shape[0]} after {time.perf_counter() - begin:.1f} s")
    print(f"{index + 1} frames in {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
