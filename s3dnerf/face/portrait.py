"""A portrait: the face in a picture, found, judged and cropped for the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, align_depth, fit_head_pose, to_head
from s3dnerf.face.certainty import measure_doubts
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.face_mesh import FaceMesh
from s3dnerf.face.landmarks import detect_faces, to_pixels
from s3dnerf.face.lips import average_lips
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.regions import measure_eye_openness
from s3dnerf.media.image import read_image

MIN_FACE_PIXELS = 48
"""Smallest face, outer eye corner to outer eye corner times 2.7, that is accepted."""
MAX_TURN_DEGREES = 55.0
"""Largest turn of the head away from the viewer that is accepted."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Face:
    """A face found in a picture, cropped for the model."""

    picture: np.ndarray
    """``uint8 [H, W, 3]`` the whole picture."""
    crop: CropBox
    image: np.ndarray
    """``uint8 [S, S, 3]``."""
    landmarks: np.ndarray
    """``[P, 3]`` head space."""
    pose: HeadPose
    """One pose, crop-normalized."""
    eyes: np.ndarray
    """``[2]`` openness."""


def find_face(path: str | Path, size: int, number: int | None = None) -> Face:
    """Find a face in a picture and crop it for a model of frames ``size`` pixels wide.

    Raises:
        UserError: no face, no face of that number, a tiny face, or a side view.
    """
    image = read_image(path)
    faces = detect_faces(image)
    if not faces:
        raise UserError(path, "shows no face", "use a picture of one person's face, seen from the front")
    if number is not None and not 1 <= number <= len(faces):
        raise UserError(path, f"shows {len(faces)} face(s), there is no face {number}", "choose another --face")
    if number is None and len(faces) > 1:
        log.warning("%s shows %d faces; the largest is taken (--face N chooses)", path, len(faces))
    points = to_pixels(faces[(number or 1) - 1], image.shape[:2])[None]
    pose = fit_head_pose(points)
    check_face(path, pose)
    face = crop_face(image, points, choose_crop(pose, image.shape[:2]), size)
    doubts = measure_doubts(FaceMesh(), face.image, crop_landmarks(points, face.crop))
    if doubts.is_unsure:
        log.warning(
            "%s: the face networks are unsure of this face (%s); use a photograph of a human face", path, doubts
        )
    return face


def check_face(path: str | Path, pose: HeadPose) -> None:
    """Refuse faces that are too small or turned too far."""
    width = 2.0 * float(pose.scale[0])
    if width < MIN_FACE_PIXELS:
        reason = f"the face is only about {width:.0f} pixels wide"
        raise UserError(path, reason, f"use a picture in which it has at least {MIN_FACE_PIXELS}")
    turn = float(np.degrees(np.arccos(np.clip(pose.rotation[0, 2, 2], -1, 1))))
    if turn > MAX_TURN_DEGREES:
        reason = f"the face is turned away by {turn:.0f} degrees"
        raise UserError(path, reason, f"use a picture from the front (up to {MAX_TURN_DEGREES:.0f} degrees)")


def crop_face(image: np.ndarray, points: np.ndarray, box: CropBox, size: int) -> Face:
    """Cut a face with landmarks ``points [1, 478, 3]`` (pixels) out of ``image``."""
    cropped = apply_crop(image, box, size)
    landmarks = average_lips(FaceMesh(), cropped[None], crop_landmarks(points, box))
    pose = fit_head_pose(landmarks)
    in_head = to_head(align_depth(landmarks, pose), pose)[0, KEPT_POINTS]
    eyes = measure_eye_openness(landmarks)[0]
    return Face(image, box, cropped, in_head, pose, eyes)
