"""Rendering options, checked by the command line and the pipeline before anything is loaded."""

from __future__ import annotations

from numbers import Real
from pathlib import Path

import numpy as np
from PIL import ImageColor

from s3dnerf import limits
from s3dnerf.errors import ArgumentError
from s3dnerf.paths import is_file

MOTIONS = ("static", "idle", "speech")
METHODS = ("s3dnerf", "fd2talk")
RENDERERS = ("nerf", "diffusion")
REFINEMENTS = ("off", "diffusion")
BLINKS = ("auto", "off")
FRAMINGS = ("crop", "picture")
KEEP, TRANSPARENT = "keep", "transparent"
"""Backgrounds that are no color."""
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
    max_side: int,
) -> None:
    """Raise UserError if an option of ``TalkingHeadPipeline.__call__`` is unknown or out of range."""
    limits.require_choice("blink", blink, BLINKS)
    limits.require_choice("framing", framing, FRAMINGS)
    limits.SEED.require("seed", seed)
    if size is not None:
        limits.SIZE.require("size", size)
    if face is not None:
        limits.FACE.require("face", face)
    limits.MAX_SIDE.require("max_side", max_side)
    check_turn(turn)
    check_pose(pose)
    parse_color(background)
    if framing == "picture" and background != KEEP:
        raise ArgumentError("background", background, "cannot replace that of a whole picture", "Use the framing crop.")


def check_renderer(method: str, renderer: str, refine: str, background: str, continues: bool) -> None:
    """Raise UserError if the renderer does not exist or cannot do what the other options ask for.

    ``continues`` tells whether the video begins where another one ended.
    """
    limits.require_choice("method", method, METHODS)
    limits.require_choice("renderer", renderer, RENDERERS)
    limits.require_choice("refine", refine, REFINEMENTS)
    if refine != "off" and background == TRANSPARENT:
        raise ArgumentError("refine", refine, "needs a background", "Use another background, or no refinement.")
    if renderer == "nerf":
        return
    if method != "fd2talk":
        raise ArgumentError("renderer", renderer, "renders the motion of fd2talk alone", "Use the method fd2talk.")
    if refine != "off":
        raise ArgumentError("refine", refine, "is for frames of the radiance field", "Use the renderer nerf.")
    if background != KEEP:
        raise ArgumentError("renderer", renderer, "keeps the background of the image", "Use the background keep.")
    if continues:
        raise ArgumentError("renderer", renderer, "cannot continue another video", "Leave start out.")


def check_turn(turn: tuple[float, float]) -> None:
    """Raise UserError unless ``turn`` is two angles in degrees up to :data:`MAX_TURN`."""
    angles = list(turn) if isinstance(turn, (tuple, list, np.ndarray)) else [turn]
    if len(angles) != 2 or not all(isinstance(angle, Real) for angle in angles):
        words = " ".join(str(angle) for angle in angles)
        raise ArgumentError("turn", words, "is not two numbers", "Give the degrees to the right and up, such as 20 5.")
    if not all(abs(angle) <= MAX_TURN for angle in angles):
        reason = "turns the head further than one photograph can show"
        hint = f"Use -{MAX_TURN:g} to {MAX_TURN:g} degrees."
        raise ArgumentError("turn", "{:g} {:g}".format(*angles), reason, hint)


def check_pose(pose: str | Path) -> None:
    """Raise UserError unless ``pose`` is one of :data:`MOTIONS` or a file."""
    if pose not in MOTIONS and not is_file(pose):
        hint = f"{limits.suggest(pose, MOTIONS)}Use static, idle, speech or the path of a video."
        raise ArgumentError("pose", str(pose), "is no video file", hint)


def parse_color(background: str) -> tuple[int, int, int] | None:
    """Return the RGB values, 0 to 255, of the name or hexadecimal code of a color; None for other backgrounds.

    Raises:
        ArgumentError: it is neither "keep", "transparent" nor a color.
    """
    if background in (KEEP, TRANSPARENT):
        return None
    question = limits.suggest(background, (KEEP, TRANSPARENT, *ImageColor.colormap))
    hint = f'{question}Use keep, transparent, or a color such as green or "#00ff00".'
    try:
        color = ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError) as error:
        raise ArgumentError("background", str(background), "is not a color", hint) from error
    if len(color) != 3 or max(color) > 255:
        raise ArgumentError("background", str(background), "is not a color of three values up to 255", hint)
    return color
