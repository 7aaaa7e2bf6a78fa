"""Pairs of coarse and real frames for frame diffusion, made once and kept in files.

A coarse frame is the source warped to the landmarks of the target, or, for ``--refine``, the frame that S3D-NeRF
renders of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from s3dnerf.constraints import NonNegativeInt, PositiveFloat, PositiveInt, Share, Text
from s3dnerf.data.clips import PreparedClips
from s3dnerf.data.config import PERSON_POWER
from s3dnerf.data.sampling import ClipSampler, spread_rows
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, load_canonical_face, project
from s3dnerf.face.coefficients import MotionCoefficients, compute_coefficients
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EYE_STATE_SIZE, load_shipped_basis
from s3dnerf.face.mirror import mirror_landmarks, mirror_pose
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.portrait import Face
from s3dnerf.face.portrait_warp import REGION_COUNT, draw_regions, find_controls, take_apart
from s3dnerf.face.rotation import matrix_to_rotvec
from s3dnerf.media.files import atomic_write_folder
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE
from s3dnerf.ops.image import to_bytes
from s3dnerf.paths import is_folder
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.source_image import make_background
from s3dnerf.talking_video import PhaseTimer

EXPRESSION_CLIPS, EXPRESSION_STRIDE = 128, 10
"""Clips, and distance of their frames, to which the estimate of a source's expression is fitted."""
RIDGE = 0.1
"""Penalty of that fit as a fraction of the mean variance of a coefficient."""
COEFFICIENT_CLIPS = 64
"""Clips whose coefficients are kept in memory."""


@dataclass
class FrameDataConfig:
    """Where clips come from, and how pairs of frames are made."""

    root: Text = "data/prepared"
    """Prepared clips or shards (made by tools/prepare.py), as for ``train``; of streamed shards, some are used."""
    train_split: Text = "train"
    """Split to train on."""
    held_out_people: NonNegativeInt | None = None
    """People of that split who are left out for validation; as for ``train``."""
    pairs: Annotated[PositiveInt, Field(le=200_000)] = 2_400
    """Pairs of a coarse and a real frame, 600 KB each on disk."""
    held_out_pairs: Annotated[PositiveInt, Field(le=20_000)] = 160
    """Likewise of the people held out."""
    pairs_per_source: Annotated[PositiveInt, Field(le=64)] = 8
    """Pairs that share a source."""
    rendered: Share = 0.33
    """Fraction of pairs whose coarse frame is rendered by S3D-NeRF, and not the warped source."""
    renderer: Path | None = None
    """Folder of the weights of S3D-NeRF; None for the shipped ones."""
    max_turn: PositiveFloat = 30.0
    """Largest turn of the head from the source, in degrees."""


@dataclass(frozen=True)
class FramePairs:
    """N pairs of frames, in files that are mapped into memory."""

    target: np.ndarray
    """``uint8 [N, S, S, 3]`` real frames."""
    previous: np.ndarray
    """``uint8 [N, S, S, 3]`` the real frames before them."""
    coarse: np.ndarray
    """``uint8 [N, S, S, 3]`` warped sources, or renderings."""
    source: np.ndarray
    """``uint8 [M, S, S, 3]``."""
    source_row: np.ndarray
    """``int64 [N]`` row of each pair's source."""
    regions: np.ndarray
    """``uint8 [N, 5, S / 8, S / 8]`` maps of the target's regions, see ``draw_regions``."""
    motion: np.ndarray
    """``float32 [N, 34]`` motion coefficients of the target minus those of the source."""
    is_rendered: np.ndarray
    """``bool [N]``; regions and motion of renderings are not used."""

    def __len__(self) -> int:
        return len(self.target)


PAIR_FIELDS = tuple(item.name for item in fields(FramePairs))


def load_pairs(folder: Path) -> FramePairs:
    """Map pairs into memory.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        return FramePairs(
            **{name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in PAIR_FIELDS}
        )
    except (OSError, ValueError) as error:
        raise UserError(folder, f"holds no pairs of frames ({error})", "Delete the folder and train again.") from error


def make_pairs(
    folder: Path, prepared: PreparedClips, config: FrameDataConfig, size: int, count: int, seed: int
) -> FramePairs:
    """Return ``count`` pairs of frames of ``size`` pixels, from the files in ``folder`` if they exist already.

    Raises:
        UserError: there are no clips with a face in two consecutive frames.
    """
    if not is_folder(folder):
        with atomic_write_folder(folder) as part:
            write_pairs(part, prepared, config, size, count, seed)
    return load_pairs(folder)


def write_pairs(
    folder: Path, prepared: PreparedClips, config: FrameDataConfig, size: int, count: int, seed: int
) -> None:
    """Write ``count`` pairs into a folder, see :func:`make_pairs`."""
    each = config.pairs_per_source
    sources = -(-count // each)
    latents = size // LATENT_STRIDE
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        **{name: (np.uint8, (count, size, size, 3)) for name in ("target", "previous", "coarse")},
        "source": (np.uint8, (sources, size, size, 3)),
        "source_row": (np.int64, (count,)),
        "regions": (np.uint8, (count, REGION_COUNT, latents, latents)),
        "motion": (np.float32, (count, CHANNEL_COUNT)),
        "is_rendered": (np.bool_, (count,)),
    }
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
        for name, (dtype, shape) in shapes.items()
    }
    groups = iterate_groups(prepared, config, size, seed)
    for row in tqdm(range(sources), desc="pairs of frames", dynamic_ncols=True):
        group = next(groups)
        rows = slice(row * each, min((row + 1) * each, count))
        arrays["source"][row] = group.source[0]
        arrays["source_row"][rows] = row
        for name in ("target", "previous", "coarse", "regions", "motion", "is_rendered"):
            arrays[name][rows] = getattr(group, name)[: rows.stop - rows.start]
    for array in arrays.values():
        array.flush()


def iterate_groups(prepared: PreparedClips, config: FrameDataConfig, size: int, seed: int) -> Iterator[FramePairs]:
    """Yield the pairs of one random source after another, endlessly."""
    readable, index = prepared.find_readable(), prepared.index
    usable = readable[index.valid[readable] >= 3]
    if not len(usable):
        raise UserError(prepared.root, "has no clip with a face in three frames", "Prepare more clips.")
    sampler = ClipSampler(usable, index.person[usable], index.valid[usable], PERSON_POWER)
    pipeline = TalkingHeadPipeline.from_pretrained(config.renderer, "cpu") if config.rendered else None
    coefficients: dict[int, MotionCoefficients] = {}
    number, misses = 0, 0
    while True:
        rng = np.random.default_rng((seed, number))
        number += 1
        row = sampler.sample(rng)
        track = prepared.load_track(row)
        chosen = choose_frames(track, config, rng)
        misses = misses + 1 if chosen is None else 0
        if misses > 1000:
            reason = f"has no two consecutive frames with the head within {config.max_turn:g} degrees of the source"
            raise UserError(prepared.root, reason, "Prepare more clips, or raise data.max_turn.")
        if chosen is None:
            continue
        source, targets = chosen
        if row not in coefficients:
            if len(coefficients) >= COEFFICIENT_CLIPS:
                coefficients.clear()
            coefficients[row] = compute_coefficients(track)
        group = read_group(prepared, track, coefficients[row], source, targets, size, rng.random() < 0.5)
        renderer = pipeline if rng.random() < config.rendered else None
        yield group.complete(size) if renderer is None else group.render(renderer)


def choose_frames(track: ClipTrack, config: FrameDataConfig, rng: np.random.Generator) -> tuple[int, np.ndarray] | None:
    """Choose a source and targets in a clip; None if there are none near enough to the source."""
    source = int(rng.choice(track.frames))
    valid = track.clip.valid
    targets = np.flatnonzero(valid[1:] & valid[:-1]) + 1
    targets = targets[targets != source]
    rotation = track.pose.rotation.astype(np.float64)
    turns = matrix_to_rotvec(rotation[source].T @ rotation[targets])
    targets = targets[np.degrees(np.linalg.norm(turns, axis=1)) <= config.max_turn]
    if not len(targets):
        return None
    weights = np.zeros(len(valid))
    weights[track.frames] = track.sampling_weights
    chances = weights[targets] / weights[targets].sum()
    each = config.pairs_per_source
    return source, rng.choice(targets, each, replace=bool(np.count_nonzero(chances) < each), p=chances)


@dataclass(frozen=True)
class FrameGroup:
    """A source and T targets of one clip, perhaps mirrored. The source is frame 0 of all but the images."""

    source: np.ndarray
    """``uint8 [S, S, 3]``."""
    matte: np.ndarray
    """``float32 [S, S]``."""
    target: np.ndarray
    """``uint8 [T, S, S, 3]``."""
    previous: np.ndarray
    """``uint8 [T, S, S, 3]``."""
    landmarks: np.ndarray
    """``[1 + T, P, 3]`` head space."""
    displacement: np.ndarray
    """``[1 + T, P, 3]`` landmarks minus the mean face of the clip."""
    pose: HeadPose
    """1 + T poses."""
    eyes: np.ndarray
    """``[1 + T, 2]`` openness."""
    motion: np.ndarray
    """``[1 + T, 34]`` coefficients."""

    def complete(self, size: int) -> FramePairs:
        """Return the pairs with the warped source."""
        controls = find_controls(self.landmarks, self.pose)
        warped = take_apart(self.source, self.matte, controls[0]).warp(controls[1:])
        coarse = to_bytes(warped).numpy()
        places = project(self.landmarks[1:], self.pose[1:])
        regions = np.stack([draw_regions(face, size // LATENT_STRIDE, LATENT_STRIDE) for face in places])
        return self.join(coarse, np.round(255.0 * regions).astype(np.uint8), False)

    def render(self, pipeline: TalkingHeadPipeline) -> FramePairs:
        """Return the pairs with renderings of the source by S3D-NeRF."""
        size = len(self.source)
        side = pipeline.model.config.image_size
        if side != size:
            raise UserError("data.renderer", f"renders {side} pixels, not {size}", "Set model.image_size to its size.")
        crop: Any = None
        face = Face(self.source, crop, self.source, self.landmarks[0], self.pose[:1], self.eyes[0])
        identity = pipeline.encode_identity(face, 0)
        displacement = torch.from_numpy(np.ascontiguousarray(self.displacement[1:], np.float32))
        with torch.inference_mode():
            codes = pipeline.model.prepare_motion(pipeline.model.motion_encoder(displacement).float())
        poses = (self.pose[row : row + 1] for row in range(1, len(self.pose)))
        motion = zip(codes, poses, self.eyes[1:], strict=False)
        background = make_background(pipeline.model, face, identity)
        frames = pipeline.render_frames(identity, motion, PhaseTimer(), background)
        regions = np.zeros((len(self.target), REGION_COUNT, size // LATENT_STRIDE, size // LATENT_STRIDE), np.uint8)
        return self.join(np.stack(list(frames)), regions, True)

    def join(self, coarse: np.ndarray, regions: np.ndarray, is_rendered: bool) -> FramePairs:
        """Return the pairs of this group."""
        count = len(self.target)
        return FramePairs(
            target=self.target,
            previous=self.previous,
            coarse=coarse,
            source=self.source[None],
            source_row=np.zeros(count, np.int64),
            regions=regions,
            motion=self.motion[1:] - self.motion[:1],
            is_rendered=np.full(count, is_rendered),
        )


def read_group(
    prepared: PreparedClips,
    track: ClipTrack,
    coefficients: MotionCoefficients,
    source: int,
    targets: np.ndarray,
    size: int,
    mirror: bool,
) -> FrameGroup:
    """Read a source and targets of a clip."""
    frames = np.concatenate([[source], targets])
    images = prepared.read_frames(track, np.concatenate([frames, targets - 1]), size)
    matte = cv2.resize(track.clip.read_mattes([source])[0], (size, size), interpolation=cv2.INTER_LINEAR)
    matte = matte.astype(np.float32) / 255.0
    landmarks, pose = track.landmarks[frames], track.pose[frames]
    displacement = landmarks - track.mean_face
    eyes, motion = track.clip.eye_openness[frames], coefficients[frames]
    if mirror:
        images, matte = images[:, :, ::-1], np.ascontiguousarray(matte[:, ::-1])
        landmarks, displacement = mirror_landmarks(landmarks), mirror_landmarks(displacement)
        rotation, center, eyes = mirror_pose(pose.rotation, pose.center, eyes)
        pose, motion = HeadPose(rotation, pose.scale, center), motion.mirror()
    images = np.ascontiguousarray(images)
    count = len(frames)
    return FrameGroup(
        source=images[0],
        matte=matte,
        target=images[1:count],
        previous=images[count:],
        landmarks=landmarks,
        displacement=displacement,
        pose=pose,
        eyes=np.ascontiguousarray(eyes),
        motion=motion.flatten(),
    )


def measure_source_expression(prepared: PreparedClips) -> np.ndarray:
    """Fit the ridge regression of ``FrameDiffusion.estimate_expression``: ``float32 [25, 24]``."""
    readable, index = prepared.find_readable(), prepared.index
    sampler = ClipSampler(readable, index.person[readable], index.valid[readable], PERSON_POWER)
    rows = spread_rows(sampler.group_rows(), EXPRESSION_CLIPS)
    basis, face = load_shipped_basis(), load_canonical_face()[KEPT_POINTS]
    seen, meant = [], []
    for row in np.concatenate(rows).tolist():
        track = prepared.load_track(row)
        frames = track.frames[::EXPRESSION_STRIDE]
        seen.append(basis.project(track.landmarks[frames] - face, np.zeros((len(frames), EYE_STATE_SIZE), np.float32)))
        meant.append(compute_coefficients(track).expression[frames])
    # Clips weigh alike.
    weights = np.concatenate([np.full((len(part), 1), 1.0 / len(part)) for part in seen])
    x = np.concatenate(seen).astype(np.float64)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    covariance = x.T @ (weights * x)
    penalty = RIDGE * np.diag(covariance)[:-1].mean() * np.diag([*np.ones(len(covariance) - 1), 0.0])
    return np.linalg.solve(covariance + penalty, x.T @ (weights * np.concatenate(meant))).astype(np.float32)


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """Convert ``uint8 [N, S, S, 3]`` to ``float32 [N, 3, S, S]`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))).float() / 255.0
