"""The head motion that the user asks for: none, idle, or that of a video."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

from s3dnerf.face.camera import HeadPose
from s3dnerf.face.motion import iterate_idle_motion, iterate_ping_pong, transfer_motion
from s3dnerf.face.motion_file import SUFFIX, read_motion
from s3dnerf.face.motion_limits import limit_motion

log = logging.getLogger(__name__)


def choose_head_motion(
    first: HeadPose, pose: str | Path, seed: int, source: HeadPose | None = None
) -> Callable[..., Iterator[HeadPose]]:
    """Return a function that starts the requested head motion at a given frame.

    The motion begins at the pose ``first``. Motion from a video is limited to poses that can be rendered from the
    pose in the image, ``source``, which defaults to ``first``.
    """
    if pose == "static":
        return lambda start=0: repeat(first)
    if pose == "idle":
        return lambda start=0: iterate_idle_motion(first, seed, start=start)
    path = Path(pose)
    if path.suffix == SUFFIX:
        held = limit_motion(source or first, transfer_motion(first, read_motion(path)))
        return lambda start=0: iterate_ping_pong(held.motion, start)
    # The tracker of videos takes long to import, and only a video needs it.
    from s3dnerf.face.driving_video import read_driving_motion

    driving = read_driving_motion(path)
    held = limit_motion(source or first, transfer_motion(first, driving.pose))
    held_back = held.describe()
    notes = [driving.describe(), held_back and f"head motion is held within what the portrait shows ({held_back})"]
    if any(notes):
        log.warning("%s: %s", path, "; ".join(note for note in notes if note))
    return lambda start=0: iterate_ping_pong(held.motion, start)
