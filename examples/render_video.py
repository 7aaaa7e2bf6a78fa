"""Render a talking head: a source image and speech become a video file.

python examples/render_video.py portrait.png speech.wav talking.mp4
"""

import sys

from s3dnerf import TalkingHeadPipeline


def main(image: str, audio: str, out: str) -> None:
    """Render ``image`` speaking ``audio`` to the file ``out``."""
    pipeline = TalkingHeadPipeline.from_pretrained()
    video = pipeline(image, audio, pose="speech", blink="auto", size=256)
    video.save(out, progress=True)
    print(f"{out}: {len(video)} frames of {video.size[0]} x {video.size[1]} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])
