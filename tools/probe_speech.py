"""Probe speech features: how well do they predict the lip opening of unseen people?

    python tools/probe_speech.py --clips data/prepared

A ridge regression maps nine frames of features to the lip opening. Each clip of the train split is predicted by a fit
without its person, the clips of the validation split by a fit to the whole train split. Prints the mean over clips of
the correlation with the true opening, then for each clip of the validation split and the last features the delay of its
audio in frames, and the correlation after correction for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.constants import SAMPLES_PER_FRAME
from s3dnerf.data.clips import open_clips
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.models.speech_features import LogMel, Moonshine, space_evenly

REACH = 4
"""Frames of context on either side."""
FOLDS = 4
PENALTIES = (1e2, 1e3, 1e4, 1e5)
LONGEST = 250
"""Maximum number of frames used of a clip."""
FARTHEST = 5
"""Largest offset that is searched, in frames to either side."""


@dataclass(frozen=True)
class Example:
    """A clip as input and target of the regression."""

    clip: str
    person: str
    inputs: Tensor
    """``[T, features]``."""
    opening: Tensor
    """``[T]``, zero-mean."""


def main() -> None:
    """Print the correlations for every kind of speech features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="prepared clips")
    options = parser.parse_args()
    tracks = {split: read_speaking(options.clips, split) for split in ("train", "val")}
    print("| features | people left out | the same without GRID | validation people |\n| --- | ---: | ---: | ---: |")
    for name, function in list_features().items():
        train, val = (
            [make_example(track, function) for track in tqdm(tracks[split], desc=name, leave=False)] for split in tracks
        )
        found = [(measure_left_out(train, penalty), penalty) for penalty in PENALTIES]
        scores, penalty = max(found, key=lambda entry: entry[0].mean())
        others = torch.tensor(["grid" not in example.person for example in train])
        fit = fit_ridge(train, penalty)
        known = torch.stack([correlate(example, fit) for example in val])
        print(f"| {name} | {scores.mean():.2f} | {scores[others].mean():.2f} | {known.mean():.2f} |", flush=True)
    print("\n| validation clip | correlation | own offset | correlation there |\n| --- | ---: | ---: | ---: |")
    for example in val:
        late, best = recover_offset(example, fit)
        print(f"| {example.clip} | {correlate(example, fit):.2f} | {late:+d} | {best:.2f} |")


def read_speaking(root: Path, split: str) -> list[ClipTrack]:
    """Read the clips whose audio and video are in sync."""
    clips = open_clips(root, split)
    return [clips.load_track(row) for row in clips.find_speaking(2 * REACH).tolist()]


def list_features() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return functions from audio ``[1, samples]`` to features ``[1, C, columns]``, by name."""
    moonshine = Moonshine()

    def make_extractor(layer: int) -> Callable[[Tensor], Tensor]:
        def read(sound: Tensor) -> Tensor:
            hidden = next(islice(moonshine.network.iterate_states(sound), layer, None)).transpose(1, 2)
            return space_evenly(hidden, sound.shape[1], moonshine.step, moonshine.first, moonshine.rate)

        return read

    layers = {
        f"Moonshine, layer {layer}": make_extractor(layer) for layer in range(1, len(moonshine.network.layers) + 1)
    }
    return {"log-mel": LogMel(), "Moonshine, stem": make_extractor(0), **layers}


@torch.no_grad()
def make_example(track: ClipTrack, features: Callable[[Tensor], Tensor]) -> Example:
    """Average features over frames, and concatenate those of neighboring frames."""
    frames = min(track.clip.frames, LONGEST)
    sound = torch.from_numpy(track.speech[: track.clip.frames * SAMPLES_PER_FRAME])[None]
    columns = features(sound)[0]
    by_frame = columns.unflatten(1, (track.clip.frames, -1)).mean(-1).T[:frames]
    by_frame = by_frame - by_frame.mean(dim=0)
    padded = torch.nn.functional.pad(by_frame, (0, 0, REACH, REACH))
    opening = torch.from_numpy(np.asarray(track.clip.lip_opening[:frames], np.float32))
    return Example(
        track.clip.id, track.clip.person, padded.unfold(0, 2 * REACH + 1, 1).flatten(1), opening - opening.mean()
    )


def measure_left_out(examples: list[Example], penalty: float) -> Tensor:
    """Return the correlation of every clip with the fit to people of the other folds."""
    people = sorted({example.person for example in examples})
    scores = torch.zeros(len(examples))
    for fold in range(FOLDS):
        left_out = set(people[fold::FOLDS])
        fit = fit_ridge([example for example in examples if example.person not in left_out], penalty)
        for index, example in enumerate(examples):
            if example.person in left_out:
                scores[index] = correlate(example, fit)
    return scores


def fit_ridge(examples: list[Example], penalty: float) -> Tensor:
    """Fit a ridge regression to all frames of the clips. Returns ``[features]``."""
    inputs = torch.cat([example.inputs for example in examples])
    opening = torch.cat([example.opening for example in examples])
    scale = inputs.std(dim=0).clamp(min=1e-6)
    inputs = inputs / scale
    gram = inputs.T @ inputs
    gram.diagonal().add_(penalty)
    return torch.linalg.solve(gram, inputs.T @ opening) / scale


def correlate(example: Example, fit: Tensor) -> Tensor:
    """Return the Pearson correlation of one clip."""
    return torch.corrcoef(torch.stack([example.inputs @ fit, example.opening]))[0, 1].nan_to_num()


def recover_offset(example: Example, fit: Tensor) -> tuple[int, float]:
    """Return the delay of the audio of a clip in frames, and the correlation after correction for it."""
    frames = len(example.opening)
    scores = {}
    for late in range(-FARTHEST, FARTHEST + 1):
        audio, video = (slice(max(0, shift), frames + min(0, shift)) for shift in (late, -late))
        moved = replace(example, inputs=example.inputs[audio], opening=example.opening[video])
        scores[late] = correlate(moved, fit).item()
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


if __name__ == "__main__":
    main()
