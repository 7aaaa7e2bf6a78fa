"""Reenactment: a clip from its own first frame, its sound and its tracked head poses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from s3dnerf import limits
from s3dnerf.diffusion_frames import diffuse_frames, refine_frames
from s3dnerf.face.camera import HeadPose, align_depth, to_head_space
from s3dnerf.face.crop import CropPaster
from s3dnerf.face.lips import fuse_video_lips
from s3dnerf.face.motion import iterate_blinks
from s3dnerf.face.points import KEPT_POINTS, POINT_COUNT
from s3dnerf.face.portrait import MAX_TURN_DEGREES, Face, extract_face
from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening
from s3dnerf.face.video import HeadTrack, track_head
from s3dnerf.framing import choose_pasted_size
from s3dnerf.media.audio import measure_level, stream_clean_speech
from s3dnerf.media.memory import AudioInput, to_media
from s3dnerf.media.video import stream_frames
from s3dnerf.models.fd2talk.frame_renderer import list_expressions
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.render_options import RenderOptions
from s3dnerf.source_image import make_background, open_eyes
from s3dnerf.speech_motion import encode_audio
from s3dnerf.talking_video import PhaseTimer

if TYPE_CHECKING:
    from s3dnerf.pipeline import TalkingHeadPipeline


@dataclass(frozen=True, kw_only=True)
class ReenactmentOptions:
    """How a clip is reenacted."""

    freeze_mouth: bool = False
    """Hold the speech of the first frame."""
    freeze_pose: bool = False
    """Hold the head pose of the first frame."""
    max_frames: int | None = None
    """Maximum number of frames, counted from the first."""
    seed: int = 0
    """Seed of the blinks, 0 or more."""
    landmarks: np.ndarray | None = None
    """``[T, 478, 3]`` landmarks of the clip if already tracked (normalized image coordinates)."""
    method: str = "s3dnerf"
    """What moves the face, see ``RenderOptions``."""
    renderer: str = "nerf"
    """See ``RenderOptions``."""
    refine: str = "off"
    """See ``RenderOptions``."""
    source: str = "first"
    """Frame of the clip that serves as the source image: "first", or the one with "closed_eyes", a "closed_mouth", an
    "open_mouth" or a "turned" head."""
    images: int = 1
    """Frames of the clip that serve as source images: that one, and those in which the head is turned farthest from the
    ones before."""
    tracked_motion: bool = False
    """Move the face as the clip shows it, in place of speech: what a perfect speech path would give. Not with other
    values of ``method`` and ``renderer``."""
    tracked_source: bool = False
    """Take the expression of the source image from the clip, whose mean is the face at rest, in place of the estimate
    from one image."""
    shows_detail: bool = True
    """Show the photograph's own detail where the clip has more pixels than the model renders."""


def reenact(
    pipeline: TalkingHeadPipeline, video: str | Path, audio: AudioInput | None, options: ReenactmentOptions
) -> Iterator[np.ndarray]:
    """Yield the frames of a reenacted clip, see ``TalkingHeadPipeline.reenact``."""
    method, renderer, refine, seed = options.method, options.renderer, options.refine, options.seed
    if options.tracked_motion and (method, renderer) != ("s3dnerf", "nerf"):
        raise ValueError(f"tracked_motion is for method s3dnerf and renderer nerf, not for method {method}, {renderer}")
    pipeline.check_options(RenderOptions(method=method, renderer=renderer, refine=refine, seed=seed))
    if options.max_frames is not None:
        limits.REENACTED_FRAMES.require("max_frames", options.max_frames)
    landmarks = options.landmarks
    if landmarks is not None and (landmarks.ndim != 3 or landmarks.shape[1:] != (POINT_COUNT, 3)):
        raise ValueError(f"expected landmarks [T, {POINT_COUNT}, 3], got {list(landmarks.shape)}")
    head = track_head(video, landmarks=landmarks, max_frames=options.max_frames)
    index = choose_source_frame(head, options.source)
    first = next(islice(stream_frames(video), index, None))
    found = extract_face(first, head.landmarks[index : index + 1], head.crop, pipeline.model.config.image_size)
    pose, found = head.pose, replace(found, pose=head.pose[index : index + 1])

    sound = to_media(audio or video, "audio")
    level = measure_level(stream_clean_speech(sound))
    poses = (pose[:1] if options.freeze_pose else pose[index : index + 1] for index in range(len(pose)))
    others = find_other_sources(video, head, found, index, options.images)
    eyes = iterate_blinks(open_eyes(pipeline.model, found, others), seed)
    blocks = pipeline.generate_motion(sound, level, seed, frames=len(pose))
    if renderer == "diffusion":
        expressions = list_expressions(blocks)
        shown = repeat(next(expressions)) if options.freeze_mouth else expressions
        frames = diffuse_frames(pipeline.frame_diffusion, found, shown, poses, eyes, seed, PhaseTimer())
    else:
        identity = pipeline.encode_identity(found, seed, others)
        size = choose_pasted_size(head.crop.side) if options.shows_detail and refine == "off" else None
        background = make_background(pipeline.model, found, identity, size=size, others=others)
        needs_track = options.tracked_motion or options.tracked_source
        tracked = encode_tracked_motion(pipeline.model, video, head) if needs_track else None
        if tracked is not None and options.tracked_source:
            identity = replace(identity, source_motion=tracked[index : index + 1])
        if tracked is not None and options.tracked_motion:
            codes = tracked
        elif method == "fd2talk":
            codes = pipeline.encode_expression(blocks)
        else:
            codes = encode_audio(pipeline.model, identity, sound, level, len(pose))
        heard: Iterable[torch.Tensor] = repeat(codes[0]) if options.freeze_mouth else codes
        motion = zip(heard, poses, eyes, strict=False)
        frames = pipeline.render_frames(identity, motion, PhaseTimer(), background)
    if refine == "diffusion":
        frames = refine_frames(pipeline.frame_diffusion, found, frames, seed, PhaseTimer())
    paster = CropPaster(first, head.crop)
    for frame in frames:
        yield paster.paste(frame)


def encode_tracked_motion(model: S3DNeRF, video: str | Path, head: HeadTrack) -> torch.Tensor:
    """Return the motion codes ``[T, R, code]`` of the face in a clip, as training computes them."""
    crops = head.crop_frames(stream_frames(video), model.config.image_size)
    landmarks = align_depth(fuse_video_lips(crops, head.cropped_landmarks), head.pose)
    shape = to_head_space(landmarks, head.pose)[:, KEPT_POINTS]
    displacement = torch.from_numpy(shape - shape[head.valid].mean(axis=0))
    with torch.inference_mode():
        return model.motion_encoder(displacement.to(model.canonical_landmarks)).float()


def choose_source_frame(head: HeadTrack, source: str) -> int:
    """Return the number of the frame that serves as the source image, see ``ReenactmentOptions.source``."""
    if source == "first":
        return 0
    usable = head.valid & is_usable(head.pose)
    opening = measure_lip_opening(head.cropped_landmarks, head.pose)
    scores = {
        "closed_eyes": -measure_eye_openness(head.landmarks).max(axis=1),
        "closed_mouth": -opening,
        "open_mouth": opening,
        "turned": -head.pose.rotation[:, 2, 2],
    }
    return int(np.where(usable, scores[source], -np.inf).argmax())


def is_usable(poses: HeadPose) -> np.ndarray:
    """Return which poses ``[T]`` a source image may have."""
    return poses.rotation[:, 2, 2] > np.cos(np.radians(MAX_TURN_DEGREES))


def find_other_sources(video: str | Path, head: HeadTrack, first: Face, index: int, images: int) -> list[Face]:
    """Return the faces of ``images - 1`` frames in which the head is turned farthest from the frames chosen before.

    The first of these is ``first``, frame ``index`` of the video.
    """
    chosen = choose_far_frames(head.pose, images, index)[1:]
    last = max(chosen, default=0) + 1
    size = len(first.image)
    pictures = {index: frame for index, frame in enumerate(islice(stream_frames(video), last)) if index in chosen}
    rows = [slice(index, index + 1) for index in chosen]
    faces = [extract_face(pictures[row.start], head.landmarks[row], head.crop, size) for row in rows]
    return [replace(face, pose=head.pose[row]) for face, row in zip(faces, rows, strict=True)]


def choose_far_frames(poses: HeadPose, count: int, first: int = 0) -> list[int]:
    """Return the indices of ``count`` frames: ``first``, and in turn the one turned farthest from all before."""
    chosen = [first]
    while len(chosen) < min(count, len(poses)):
        cosines = np.einsum("tij,cij->tc", poses.rotation, poses.rotation[chosen])
        chosen.append(int(np.where(is_usable(poses), cosines.max(axis=1), np.inf).argmin()))
    return chosen
