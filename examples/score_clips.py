"""Score a video against another one, frame by frame, with the functions of ``s3dnerf.metrics``.

python examples/score_clips.py target.mp4 generated.mp4
"""

import sys

import numpy as np

from s3dnerf.media.video import stream_frames
from s3dnerf.metrics import measure_cpbd, measure_psnr, measure_ssim


def score(target: str, generated: str) -> dict[str, float]:
    """Return the mean scores over all frames of two videos of the same size.

    The videos are streamed, so that their length does not matter. Extra frames of the longer one are ignored.
    """
    rows = []
    for target_frame, generated_frame in zip(stream_frames(target), stream_frames(generated), strict=False):
        pair = target_frame[None], generated_frame[None]
        rows.append((measure_psnr(*pair)[0], measure_ssim(*pair)[0], measure_cpbd(pair[1])[0]))
    return dict(zip(("psnr", "ssim", "cpbd"), np.mean(rows, axis=0).tolist(), strict=True))


def main(target: str, generated: str) -> None:
    """Print the scores."""
    for name, value in score(target, generated).items():
        print(f"{name:5} {value:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
