"""What in a source image limits the video, in sentences for the user."""

from __future__ import annotations

from collections.abc import Sequence

from s3dnerf.face.points import KEPT_POINTS, LIP_PAIRS
from s3dnerf.face.portrait import Face, measure_turn
from s3dnerf.face.regions import CLOSED_EYES

LARGE_TURN = 25.0
"""Turn of the head in degrees beyond which landmarks miss by 1.7 times as much when it turns to the front as from a
typical frame (training people; a script that is not in the repository)."""
WIDE_MOUTH = 0.15
"""Height of the opening between the lips, head units, beyond which lips stay 0.04 apart where they should close (by the
same script)."""
SMALL_HEAD = 0.6
"""Side of the crop in the picture, relative to the model's, below which frames are visibly blurred."""
UPPER_LIPS, LOWER_LIPS = (KEPT_POINTS.searchsorted(rows) for rows in zip(*LIP_PAIRS, strict=True))


def describe_limits(faces: Sequence[Face]) -> list[str]:
    """Return what limits the video of a person, given their face in one or several images; usually nothing.

    Several images are as good as the best of them: open eyes in one are enough.
    """
    notes = []
    if max(face.eyes.mean() for face in faces) < CLOSED_EYES[0]:
        notes.append("the eyes are closed, so eyes of nobody in particular are shown; one with open eyes is better")
    if (turn := min(measure_turn(face.pose) for face in faces)) > LARGE_TURN:
        notes.append(f"the head is turned by {turn:.0f} degrees, so a side is invented; one from the front is better")
    if min(measure_opening(face) for face in faces) > WIDE_MOUTH:
        notes.append("the mouth is wide open, and will not close entirely; one with closed lips is better")
    if (side := max(face.crop.side for face in faces)) < SMALL_HEAD * len(faces[0].image):
        notes.append(f"the head is seen in {side:.0f} x {side:.0f} pixels, so frames are blurred; a larger one helps")
    return notes


def measure_opening(face: Face) -> float:
    """Return the height of the opening between the lips, head units."""
    return float((face.landmarks[UPPER_LIPS] - face.landmarks[LOWER_LIPS])[:, 1].mean())
