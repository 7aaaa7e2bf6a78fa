"""Measure how far the body follows the neck: the constants of ``s3dnerf/rendering/body_motion.py``.

    python tools/fit_body_motion.py --clips data/prepared

Frames of the train split are paired with source frames of the same clip, as in training. Below the neck, the optical
flow between the two is compared with the shift of the neck. Prints for each range of heights how far the flow is, on
average, from that of a body that stays, that moves with the head, and that follows the neck by shares fitted to the
other half of the people; then the shares fitted to all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch.nn import functional as F
from tqdm import tqdm

from s3dnerf.data.batch import BatchContent
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import TalkingFaceDataset, select_held_out
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.body_motion import NECK, measure_neck_flow
from s3dnerf.rendering.rays import intersect_plane, project_points

SIZE = 128
"""Side of the images in pixels."""
HEIGHTS = (-0.5, -0.7, -0.9, -1.1, -1.3, -1.5, -1.8)
"""Bounds of the ranges of heights, head units."""
BODY = 2
"""First range to which the shares are fitted."""
LEAST_PIXELS = 16
"""Pixels of a frame that a range needs."""
CERTAIN = 0.5
"""Least confidence of optical flow that counts."""
COVERED = 0.9
"""Least coverage by the person."""


@dataclass(frozen=True)
class Motion:
    """What one range of heights shows in one frame: flows in head units, medians over its pixels."""

    half: int
    """Half of the people, 0 or 1."""
    height: int
    """Number of the range."""
    flow: np.ndarray
    """``[2]`` optical flow."""
    neck: np.ndarray
    """``[2]`` flow of the neck."""
    head: np.ndarray
    """``[2]`` flow of points that move with the head."""


def main() -> None:
    """Print distances and shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="prepared clips")
    parser.add_argument("--batches", type=int, default=200, help="batches of 6 frames of each half of the people")
    options = parser.parse_args()
    motions = [motion for half in range(2) for motion in measure_motions(options.clips, half, options.batches)]
    shares = [fit_shares([motion for motion in motions if motion.half != half]) for half in range(2)]
    print("| height | frames | stays | moves with the head | follows the neck |\n| --- | ---: | ---: | ---: | ---: |")
    for height, bounds in enumerate(pairwise(HEIGHTS)):
        here = [motion for motion in motions if motion.height == height]
        guesses = ([0.0 * m.flow, m.head, shares[m.half] * m.neck] for m in here)
        misses = [[np.linalg.norm(m.flow - guess) for guess in row] for m, row in zip(here, guesses, strict=True)]
        means = np.mean(misses, axis=0) if misses else [np.nan] * 3
        print(f"| {bounds[0]} to {bounds[1]} | {len(here)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    print("\nshares along u and v: {:.2f}, {:.2f}".format(*fit_shares(motions)))


def measure_motions(root: Path, half: int, batches: int) -> Iterator[Motion]:
    """Measure the motions in random frames of one half of the people that training may use."""
    config = DataConfig(root=root, augment=False, run_every=0)
    held_out = select_held_out(config)
    people = sorted(set(TalkingFaceDataset(config, "train", SIZE, 640, 6, 0).people) - held_out)
    chosen = set(people[half::2])
    content = BatchContent(SIZE, images=True, speech=False)
    data = TalkingFaceDataset(config, "train", SIZE, 640, 6, 0, chosen.__contains__, lambda step: content)
    for step in tqdm(range(batches), desc=f"half {half + 1}"):
        batch = data[step].images
        assert batch is not None and batch.sources.matte is not None, "batches have images"
        frames, times = batch.frames, batch.frames_per_source
        assert frames.flow is not None and frames.confidence is not None, "images have flow"
        sources, matte = batch.sources.camera.repeat(times), batch.sources.matte.repeat_interleave(times, 0)
        size = frames.flow.shape[-1]
        grid = make_pixel_grid(size, size).flatten(0, 1).expand(len(matte), -1, -1)
        flow = frames.flow.flatten(2).transpose(1, 2)
        covered = F.grid_sample(matte, (grid + flow)[:, None], align_corners=False)[:, 0, 0]
        usable = (covered > COVERED) & (frames.confidence.flatten(1) > CERTAIN)
        heights = intersect_plane(grid + flow, sources, NECK[2])[..., 1]
        head = project_points(intersect_plane(grid, frames.camera, NECK[2]), sources)[..., :2] - grid
        neck = measure_neck_flow(frames.camera, sources)
        for item, scale in enumerate(sources.scale.tolist()):
            for number, (high, low) in enumerate(pairwise(HEIGHTS)):
                rows = usable[item] & (heights[item] < high) & (heights[item] >= low)
                if rows.sum() >= LEAST_PIXELS:
                    seen, rigid = ((part[item, rows].median(0).values / scale).numpy() for part in (flow, head))
                    yield Motion(half, number, seen, (neck[item] / scale).numpy(), rigid)


def fit_shares(motions: list[Motion]) -> np.ndarray:
    """Return the shares ``[2]`` that minimize the sum of absolute differences over the ranges of the body."""
    flow, neck = (
        np.array([getattr(motion, name) for motion in motions if motion.height >= BODY]) for name in ("flow", "neck")
    )
    # The minimum is the median of the ratios, weighted by the shift of the neck.
    return np.array([find_median(flow[:, axis] / neck[:, axis], np.abs(neck[:, axis])) for axis in range(2)])


def find_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted median of ``values [N]``."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


if __name__ == "__main__":
    main()
