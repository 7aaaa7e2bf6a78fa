"""Training of the interior of the mouth, from pixels between tracked lips alone, before anything is rendered.

It is trained on pixels that the paired source does not show, because only such pixels are generated.

For an unseen person whose source shows no teeth, the type used has upper teeth and the contrast of real mouths. Below
teeth that the source shows, the darkest type is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.batch import to_frames, to_source
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.data.frames import FrameArrays
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.mouth_interior import (
    INNER_LIPS,
    PARTED,
    TOOTHED,
    MouthColors,
    MouthInterior,
    darken,
    measure_mouth_colors,
)
from s3dnerf.rendering.foveation import place_foveated_rays
from s3dnerf.rendering.opening import UPPER_LIP, Opening, find_source_interior, measure_opening_at
from s3dnerf.structures import concatenate, map_tensors, take_rows
from s3dnerf.training.losses import rgb_to_luma
from s3dnerf.training.multiple_choice import TOGETHER, average_people, train_types

FRAMES, FRAMES_PER_STEP = 16_000, 12
"""Maximum number of frames in total and per training step. For large datasets or few steps, fewer frames per person and
finally fewer people are used."""
CLIPS = 4_000
"""Maximum number of clips, about."""
FRAMES_PER_PERSON = 240
"""Maximum number of frames with open lips per person."""
PIXELS = 128
"""Pixels sampled from each frame."""
INSIDE = 0.9
"""Minimum coverage of these pixels."""
FRAMES_PER_SOURCE = 16
"""Maximum number of frames paired with the same source."""
CLOSED_SHARE = 0.5
"""Fraction of sources with closed lips, if a clip has such frames. They show no interior, so all of it is trained."""


@dataclass(frozen=True)
class MouthSamples:
    """Pixels between the lips of ``M`` frames."""

    opening: Opening
    """Positions of ``PIXELS`` pixels in each frame."""
    source: MouthColors
    """Colors of a source of the same person."""
    colors: Tensor
    """``[M, 3, PIXELS]`` target colors."""
    person: Tensor
    """``[M]`` indices of the people, ascending."""


def collect_mouth_samples(data: TalkingFaceDataset, seed: int, steps: int) -> MouthSamples:
    """Collect pixels between the lips of the people of a dataset, each paired with a source from the same clip.

    The number of frames depends on ``steps``, the steps of :func:`train_mouth_interior`.

    Raises:
        UserError: no clip shows open lips.
    """
    rng = np.random.default_rng(seed)
    people = data.list_clips(CLIPS)
    frames = min(FRAMES, FRAMES_PER_STEP * steps)
    people = people[:: math.ceil(len(people) * TOGETHER / frames)]
    wanted = min(FRAMES_PER_PERSON, frames // len(people))
    parts = []
    for person, rows in enumerate(tqdm(people, desc="mouths", leave=False)):
        total = data.clips.index.valid[rows].sum()
        for track in map(data.clips.load_track, rows.tolist()):
            parted = track.clip.lip_opening[track.frames] > PARTED
            opened, closed = track.frames[parted], track.frames[~parted]
            count = min(len(opened), math.ceil(wanted * len(track.frames) / total))
            if count == 0:
                continue
            shown = rng.choice(opened, count, replace=False)
            for first in range(0, count, FRAMES_PER_SOURCE):
                sources = closed if len(closed) and rng.random() < CLOSED_SHARE else track.frames
                beside = np.array([rng.choice(sources), *shown[first : first + FRAMES_PER_SOURCE]])
                view = data.augment_frames(
                    data.read_frame_arrays(track, beside, data.image_size, with_speech=False), rng
                )
                parts.append(sample_mouths(view, person, rng))
    parts = [part for part in parts if len(part.person)]
    if not parts:
        raise UserError(data.config.root, "no clip shows open lips", "add such clips, or set --train.mouth_steps 0")
    return concatenate(parts)


def sample_mouths(view: FrameArrays, person: int, rng: np.random.Generator) -> MouthSamples:
    """Sample pixels between the lips of a view that the source, its first frame, does not show."""
    source, frames = to_source(view.take([0])), to_frames(view.take(range(1, len(view.eyes))))
    assert frames.image is not None, "the view was read with pixels"
    size = frames.image.shape[-1]
    patch = place_foveated_rays(frames.camera, size, eye_size=(0.0, 0.0))
    outline = frames.landmarks[:, INNER_LIPS]
    lips = source.landmarks[:, INNER_LIPS].expand_as(outline)
    opening = measure_opening_at(outline, lips[:, UPPER_LIP], frames.camera, patch.points, size)
    beside = map_tensors(source.camera, lambda x: x.expand(len(outline), *x.shape[1:]))
    visible = find_source_interior(outline, lips, frames.camera, beside, patch.points, size)
    inside = (opening.coverage > INSIDE) * (1.0 - visible.visibility)
    rows = (inside.sum(dim=1) >= 1.0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    # Frames without such pixels get arbitrary ones and are dropped at the end.
    drawn = torch.multinomial(inside + 1e-9, PIXELS, replacement=True, generator=generator)
    colors = measure_mouth_colors(source.image, source.landmarks, source.camera)
    mouths = MouthSamples(
        opening.select(drawn),
        map_tensors(colors, lambda x: x.expand(len(inside), *x.shape[1:])),
        patch.select(drawn).gather(frames.image),
        torch.full((len(inside),), person),
    )
    return take_rows(mouths, rows)


def train_mouth_interior(interior: MouthInterior, mouths: MouthSamples, steps: int, seed: int) -> None:
    """Train the interior of the mouth and choose the types for unseen people."""
    train_types(interior, mouths, partial(measure_errors, interior), steps, seed, "mouth interior")
    interior.shown.copy_(torch.tensor(choose_types(interior, mouths)))


@torch.no_grad()
def choose_types(interior: MouthInterior, mouths: MouthSamples) -> tuple[int, int]:
    """Return the type for sources that show no teeth, and the type below teeth that a source shows."""
    closed = select_closed(mouths)
    painted = [darken(interior(closed.opening, closed.source, code), closed.source) for code in interior.types]
    # The type with the smallest error for all people would be the grayest one. A type that is brighter along the lower
    # lip shows the lip itself, so only types that are brighter near the upper lip are considered.
    toothed = [kind for kind, colors in enumerate(painted) if compare_halves(colors, closed) > 0] or range(len(painted))
    wanted = measure_contrast(closed.colors, closed)
    contrasting = min(toothed, key=lambda kind: abs(measure_contrast(painted[kind], closed) - wanted))
    # Below teeth, wrong content looks like flesh, whereas a dark region never does.
    painted = [interior(mouths.opening, mouths.source, code) for code in interior.types]
    darkest = min(range(len(painted)), key=lambda kind: rgb_to_luma(painted[kind][..., None]).mean().item())
    return contrasting, darkest


@torch.no_grad()
def describe_contrast(interior: MouthInterior, mouths: MouthSamples) -> str:
    """Return a line with the contrast of mouths whose source shows no teeth: real, painted, and as it is shown."""
    closed = select_closed(mouths)
    painted = interior(closed.opening, closed.source, interior.types[interior.shown[0]])
    levels = [measure_contrast(x, closed) for x in (closed.colors, painted, darken(painted, closed.source))]
    return "contrast of mouths: real {:.3f}, painted {:.3f}, shown {:.3f}".format(*levels)


def select_closed(mouths: MouthSamples) -> MouthSamples:
    """Select the frames whose source shows no teeth; all if there are none."""
    rows = (mouths.source.opening <= TOOTHED).nonzero()[:, 0]
    return take_rows(mouths, rows) if len(rows) else mouths


def compare_halves(colors: Tensor, mouths: MouthSamples) -> float:
    """Return the luminance in the half near the upper lip minus that in the half near the lower lip."""
    luminance = rgb_to_luma(colors[..., None]).flatten(1)
    upper = mouths.opening.below_upper < mouths.opening.above_lower
    return (luminance[upper].mean() - luminance[~upper].mean()).item()


def measure_contrast(colors: Tensor, mouths: MouthSamples) -> float:
    """Return the standard deviation of luminance in a mouth relative to the skin, averaged over frames, then people."""
    skin = rgb_to_luma(mouths.source.skin[..., None, None]).flatten(1)
    values = rgb_to_luma(colors[..., None]).flatten(1).std(dim=1) / skin[:, 0]
    return average_people(values, mouths.person).mean().item()


def measure_errors(interior: MouthInterior, mouths: MouthSamples) -> Tensor:
    """Return the mean absolute error of every type on every frame, relative to the skin color: ``[types, M]``."""
    skin = mouths.source.skin[..., None]
    painted = (interior(mouths.opening, mouths.source, code) for code in interior.types)
    return torch.stack([((colors - mouths.colors) / skin).abs().mean((1, 2)) for colors in painted])
