"""Training of the interior of the eyes, from pixels between tracked lids alone, before anything is rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.batch import Frames, to_frames
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.eye_interior import (
    INWARD,
    IRISES,
    LIDS,
    EyeInterior,
    measure_eye_corners,
    measure_eye_opening,
    place_eye_patch,
)
from s3dnerf.models.s3dnerf.mouth_interior import measure_mouth_colors
from s3dnerf.rendering.opening import Opening
from s3dnerf.structures import concatenate, take_rows
from s3dnerf.training.multiple_choice import average_people, train_types

CLIPS = 1_000
"""Maximum number of clips, about."""
FRAMES_PER_PERSON = 40
"""Frames with open eyes per person, about."""
OPEN = 0.7
"""Minimum openness of both eyes in these frames."""
MAX_TURN = 0.4
"""Largest turn of the head in these frames, radians. The far eye of a head that is turned further is hidden in part."""
PIXELS = 96
"""Pixels sampled from each eye."""
INSIDE = 0.5
"""Minimum coverage of these pixels, which therefore include the edges of the lids."""


@dataclass(frozen=True)
class EyeSamples:
    """Pixels between the lids of ``M`` eyes."""

    opening: Opening
    """Positions of ``PIXELS`` pixels in each eye."""
    skin: Tensor
    """``[M, 3]`` mean color of the skin in the same frame."""
    colors: Tensor
    """``[M, 3, PIXELS]`` target colors."""
    gaze: Tensor
    """``[M, 3]`` position of the iris from the middle between the corners, see ``EyeInterior.gaze``."""
    person: Tensor
    """``[M]`` indices of the people, ascending."""


def collect_eye_samples(data: TalkingFaceDataset, seed: int) -> EyeSamples:
    """Collect pixels between the open lids of the people of a dataset.

    Raises:
        UserError: no clip shows open eyes from the front.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for person, rows in enumerate(tqdm(data.list_clips(CLIPS), desc="eyes", leave=False)):
        wanted = math.ceil(FRAMES_PER_PERSON / len(rows))
        for track in map(data.clips.load_track, rows.tolist()):
            clip, frames = track.clip, track.frames
            is_open = clip.eye_openness[frames].min(axis=1) > OPEN
            is_frontal = clip.pose.rotation[frames, 2, 2] > math.cos(MAX_TURN)
            good = frames[is_open & is_frontal]
            if not len(good):
                continue
            chosen = rng.choice(good, min(wanted, len(good)), replace=False)
            arrays = data.read_frame_arrays(track, chosen, data.image_size, with_speech=False)
            parts.append(sample_eyes(to_frames(data.augment_frames(arrays, rng)), person, rng))
    parts = [part for part in parts if len(part.person)]
    if not parts:
        hint = "add such clips, or set --train.eye_steps 0"
        raise UserError(data.config.root, "no clip shows open eyes from the front", hint)
    return concatenate(parts)


def sample_eyes(frames: Frames, person: int, rng: np.random.Generator) -> EyeSamples:
    """Sample pixels between the lids of both eyes of frames."""
    assert frames.image is not None, "the frames were read with pixels"
    size, landmarks = frames.image.shape[-1], frames.landmarks
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    skin = measure_mouth_colors(frames.image, landmarks, frames.camera).skin
    middle, width = measure_eye_corners(landmarks)
    irises = landmarks[:, IRISES]
    gaze = (irises - middle) / width * torch.tensor(INWARD)
    eyes = []
    for eye in range(2):
        patch = place_eye_patch(frames.camera, eye, size)
        opening = measure_eye_opening(landmarks[:, LIDS], irises, frames.camera, patch.points, size, eye)
        inside = (opening.coverage > INSIDE).float()
        # Eyes without such pixels get arbitrary ones and are dropped.
        drawn = torch.multinomial(inside + 1e-9, PIXELS, replacement=True, generator=generator)
        colors = patch.select(drawn).gather(frames.image)
        samples = EyeSamples(opening.select(drawn), skin, colors, gaze[:, eye], torch.full((len(skin),), person))
        eyes.append(take_rows(samples, (inside.sum(1) > 0).nonzero()[:, 0]))
    return concatenate(eyes)


def train_eye_interior(interior: EyeInterior, eyes: EyeSamples, steps: int, seed: int) -> None:
    """Train the interior of the eyes, and choose the type and the gaze for unseen people."""
    train_types(interior, eyes, partial(measure_errors, interior), steps, seed, "eye interior")
    interior.shown.fill_(choose_type(interior, eyes))
    interior.gaze.copy_(average_people(eyes.gaze, eyes.person).mean(0))


@torch.no_grad()
def choose_type(interior: EyeInterior, eyes: EyeSamples) -> int:
    """Return the type with the lowest error, everyone counting alike.

    The one that fits the most people best has half the contrast of real eyes: it is that of eyes that show little.
    """
    return int(average_people(measure_errors(interior, eyes).T, eyes.person).mean(0).argmin())


def measure_errors(interior: EyeInterior, eyes: EyeSamples) -> Tensor:
    """Return the mean absolute error of every type on every eye, relative to the skin color: ``[types, M]``."""
    skin = eyes.skin[..., None]
    painted = (interior(eyes.opening, eyes.skin, code) for code in interior.types)
    return torch.stack([((colors - eyes.colors) / skin).abs().mean((1, 2)) for colors in painted])
