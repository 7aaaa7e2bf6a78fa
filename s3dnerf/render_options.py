"""Rendering options, checked by the command line and the pipeline before anything is loaded."""

from __future__ import annotations

from numbers import Real
from pathlib import Path

import numpy as np
from PIL import ImageColor

from s3dnerf import limits
from s3dnerf.errors import UserError
from s3dnerf.paths import is_file

MOTIONS = ("static", "idle", "speech")
METHODS = ("s3dnerf", "fd2talk")
RENDERERS = ("nerf", "diffusion")
REFINEMENTS = ("off", "diffusion")
BLINKS = ("auto", "off")
FRAMINGS = ("crop", "picture")
MAX_TURN = 40.0
"""Degrees. Beyond this, most of the visible surface is not in the source image."""


def check_options(
    pose: str | Path,
    turn: tuple[float, float],
    blink: str,
    background: str,
    framing: str,
    size: int | None,
    face: int | None,
    seed: int,
) -> None:
    """Raise UserError if an option of ``TalkingHeadPipeline.__call__`` is unknown or out of range."""
    limits.require_choice("--blink", blink, BLINKS)
    limits.require_choice("--framing", framing, FRAMINGS)
    limits.SEED.require("--seed", seed)
    if size is not None:
        limits.SIZE.require("--size", size)
    if face is not None:
        limits.FACE.require("--face", face)
    check_turn(turn)
    check_pose(pose)
    parse_color(background)


def check_renderer(method: str, renderer: str, refine: str, background: str, continues: bool) -> None:
    """Raise UserError if the renderer does not exist or cannot do what the other options ask for.

    ``continues`` tells whether the video begins where another one ended.
    """
    limits.require_choice("--method", method, METHODS)
    limits.require_choice("--renderer", renderer, RENDERERS)
    limits.require_choice("--refine", refine, REFINEMENTS)
    if renderer == "nerf":
        return
    if method != "fd2talk":
        raise UserError("--renderer diffusion", "renders the motion of fd2talk alone", "Add --method fd2talk.")
    if refine != "off":
        raise UserError("--refine", "is for frames of the radiance field", "Leave it out, or use --renderer nerf.")
    if background != "keep":
        raise UserError("--renderer diffusion", "keeps the background of the image", "Leave --background out.")
    if continues:
        raise UserError("--renderer diffusion", "cannot continue another video", "Leave --start out.")


def check_turn(turn: tuple[float, float]) -> None:
    """Raise UserError unless ``turn`` is two angles in degrees up to :data:`MAX_TURN`."""
    angles = list(turn) if isinstance(turn, (tuple, list, np.ndarray)) else [turn]
    if len(angles) != 2 or not all(isinstance(angle, Real) for angle in angles):
        words = " ".join(str(angle) for angle in angles)
        raise UserError(f"--turn {words}", "is not two numbers", "Give the degrees to the right and up, such as 20 5.")
    if not all(abs(angle) <= MAX_TURN for angle in angles):
        reason = "turns the head further than one photograph can show"
        hint = f"Use -{MAX_TURN:g} to {MAX_TURN:g} degrees."
        raise UserError("--turn {:g} {:g}".format(*angles), reason, hint)


def check_pose(pose: str | Path) -> None:
    """Raise UserError unless ``pose`` is one of :data:`MOTIONS` or a file."""
    if pose not in MOTIONS and not is_file(pose):
        hint = f"{limits.suggest(pose, MOTIONS)}Use static, idle, speech or the path of a video."
        raise UserError(f"--pose {pose}", "is no video file", hint)


def parse_color(background: str) -> np.ndarray | None:
    """Return None for "keep" and ``float32 [3]`` in [0, 1] for the name or hexadecimal code of a color."""
    if background == "keep":
        return None
    question = limits.suggest(background, ("keep", *ImageColor.colormap))
    hint = f'{question}Use keep, or a color such as green or "#00ff00".'
    try:
        color = ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"--background {background}", "is not a color", hint) from error
    if len(color) != 3 or max(color) > 255:
        raise UserError(f"--background {background}", "is not a color of three values up to 255", hint)
    return np.array(color, np.float32) / 255.0
