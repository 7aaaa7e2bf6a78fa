"""The face in a source image: detected, checked and cropped for the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, align_depth, fit_head_pose, to_head_space
from s3dnerf.face.consistency import measure_inconsistency
from s3dnerf.face.crop import CropBox, apply_crop, choose_crop, crop_landmarks
from s3dnerf.face.face_mesh import load_face_mesh
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.lips import fuse_lip_landmarks
from s3dnerf.face.points import KEPT_POINTS, OUTER_EYE_CORNERS
from s3dnerf.face.regions import measure_eye_openness
from s3dnerf.face.search import detect_faces
from s3dnerf.media.image import WHITE, ImageInput, check_aspect, read_image

MIN_FACE_PIXELS = 48
"""Smallest accepted face width: 2.7 times the distance of the outer eye corners."""
MAX_TURN_DEGREES = 55.0
"""Largest accepted rotation of the head away from the viewer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Face:
    """A face in an image, cropped for the model."""

    picture: np.ndarray
    """``uint8 [H, W, 3]`` the whole image."""
    crop: CropBox
    """The square around the head in it."""
    image: np.ndarray
    """``uint8 [S, S, 3]`` the crop."""
    landmarks: np.ndarray
    """``[P, 3]`` head space."""
    pose: HeadPose
    """One pose, crop-normalized."""
    eyes: np.ndarray
    """``[2]`` openness."""


def find_face(image: ImageInput, size: int, number: int | None = None, over: tuple[int, int, int] = WHITE) -> Face:
    """Find a face in an image and crop it.

    Args:
        image: the image, see :func:`s3dnerf.media.image.read_image`.
        size: side of the model's images in pixels.
        number: which face to take, 1 being the largest; by default the largest, with a warning if there are several.
        over: color behind transparent pixels.

    Raises:
        UserError: there is no face or no face of that number, or it is too small or rotated too far.
    """
    path = image if isinstance(image, (str, Path)) else "image"
    picture = read_image(image, over=over)
    check_aspect(picture.shape[1], picture.shape[0], path)
    picture, faces = detect_upright(picture, path)
    if not faces:
        raise UserError(path, "shows no face", "use an image of one person's face, seen from the front")
    if number is not None and not 1 <= number <= len(faces):
        raise UserError(path, f"shows {len(faces)} face(s), there is no face {number}", "choose another number")
    if number is None and len(faces) > 1:
        log.warning("%s shows %d faces; the largest is taken (the option face chooses another)", path, len(faces))
    points = to_pixels(faces[(number or 1) - 1], picture.shape[:2])[None]
    pose = fit_head_pose(points)
    check_face(path, pose)
    face = extract_face(picture, points, choose_crop(pose, picture.shape[:2]), size)
    inconsistency = measure_inconsistency(load_face_mesh(), face.image, crop_landmarks(points, face.crop))
    if inconsistency.is_implausible:
        log.warning(
            "%s: the face networks are unsure of this face (%s); use a photograph of a human face", path, inconsistency
        )
    return face


def detect_upright(picture: np.ndarray, name: str | Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Detect the faces of a picture that may lie on its side or stand on its head, as photographs without EXIF do.

    Args:
        picture: ``uint8 [H, W, 3]``.
        name: of the picture, for the message that it is turned.

    Returns:
        The picture, turned by quarter turns so that its largest face is upright, and the landmarks ``[478, 3]`` of each
        face in it, the largest first.
    """
    for turns in (0, 1, 3, 2):
        turned = np.ascontiguousarray(np.rot90(picture, turns))
        faces = detect_faces(turned, is_turned=turns > 0)
        if not faces:
            continue
        # The detector may also find faces that are not upright.
        if more := count_quarter_turns(to_pixels(faces[0], turned.shape[:2])):
            turns = (turns + more) % 4
            turned = np.ascontiguousarray(np.rot90(picture, turns))
            faces = detect_faces(turned)
        if turns:
            direction = {1: "to the left", 2: "upside down", 3: "to the right"}[turns]
            log.warning("%s: is turned %s, so that the face is upright", name, direction)
        return turned, faces
    return picture, []


def count_quarter_turns(points: np.ndarray) -> int:
    """Return the number of counterclockwise turns by 90 degrees that make a face upright.

    Args:
        points: landmarks ``[478, 3]`` in pixels.
    """
    right, left = points[list(OUTER_EYE_CORNERS), :2]
    return round(float(np.degrees(np.arctan2(*(left - right)[::-1]))) / 90) % 4


def check_face(path: str | Path, pose: HeadPose) -> None:
    """Raise UserError if a face (pose in pixels) is too small or rotated too far."""
    width = 2.0 * float(pose.scale[0])
    if width < MIN_FACE_PIXELS:
        reason = f"the face is only about {width:.0f} pixels wide"
        raise UserError(path, reason, f"use an image in which it has at least {MIN_FACE_PIXELS}")
    angle = measure_turn(pose)
    if angle > MAX_TURN_DEGREES:
        reason = f"the face is turned away by {angle:.0f} degrees"
        raise UserError(path, reason, f"use an image from the front (up to {MAX_TURN_DEGREES:.0f} degrees)")


def measure_turn(pose: HeadPose) -> float:
    """Return the angle in degrees between the directions of a head (one pose) and of the viewer."""
    return float(np.degrees(np.arccos(np.clip(pose.rotation[0, 2, 2], -1, 1))))


def extract_face(image: np.ndarray, points: np.ndarray, box: CropBox, size: int) -> Face:
    """Crop a face from an image.

    Args:
        image: ``uint8 [H, W, 3]``.
        points: landmarks ``[1, 478, 3]`` in pixels.
        box: the square around the head.
        size: side of the model's images in pixels.
    """
    cropped = apply_crop(image, box, size)
    landmarks = fuse_lip_landmarks(load_face_mesh(), cropped[None], crop_landmarks(points, box))
    pose = fit_head_pose(landmarks)
    in_head_space = to_head_space(align_depth(landmarks, pose), pose)[0, KEPT_POINTS]
    eyes = measure_eye_openness(landmarks)[0]
    return Face(image, box, cropped, in_head_space, pose, eyes)
