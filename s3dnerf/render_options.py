"""Rendering options of the library, the command line and the web page, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

from s3dnerf import limits
from s3dnerf.errors import ArgumentError
from s3dnerf.limits import IntRange
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


def _option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    whole: IntRange | None = None,
    number: tuple[float, float] | None = None,
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """Declare an option: its default, its help text, and the values that it can have."""
    metadata = {"help": text, "choices": choices, "whole": whole, "number": number, "metavar": metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What a video shows and how its head moves.

    The fields are the keyword arguments of ``TalkingHeadPipeline`` and, with dashes, the options of ``s3dnerf render``.

    >>> options = RenderOptions(pose="static", turn=(10, 0))
    >>> options.change(background="green").turn
    (10, 0)
    """

    framing: str = _option(
        "crop",
        "the square around the head, or the whole image with the head composited into it",
        choices=FRAMINGS,
    )
    size: int | None = _option(
        None,
        "side of the square around the head in pixels, an even number from 16 to 4096 (default: the model's own, 256 "
        "for the shipped weights); ignored with --framing picture, which keeps the size of the image",
        whole=limits.SIZE,
    )
    max_side: int = _option(
        1920,
        "with --framing picture, the largest side of the video in pixels, 64 to 4096; larger images are reduced",
        whole=limits.MAX_SIDE,
    )
    method: str = _option(
        "s3dnerf",
        "what moves the face: s3dnerf from speech (the default), or the expression coefficients of fd2talk, lips "
        "included",
        choices=METHODS,
    )
    renderer: str = _option(
        "nerf",
        "what makes the frames: the radiance field (the default) or, with --method fd2talk, latent diffusion from the "
        "warped image",
        choices=RENDERERS,
    )
    refine: str = _option(
        "off",
        "refine the frames of the radiance field by latent diffusion, or not (the default)",
        choices=REFINEMENTS,
    )
    pose: str | Path = _option(
        "speech",
        "head motion: speech moves head, lids and brows as people do who say this (the default), idle sways a little, "
        "static is still, and a video file provides its own motion",
        metavar="POSE",
    )
    turn: tuple[float, float] = _option(
        (0.0, 0.0),
        "rotate the head by this many degrees to the viewer's right and up, -40 to 40 each (default: 0 0)",
        metavar=("RIGHT", "UP"),
    )
    liveliness: float = _option(
        1.0,
        "with --pose speech, how lively the head is: 0 (still) to 2 (twice as fast as usual)",
        number=(0.0, limits.MAX_LIVELINESS),
    )
    blink: str = _option("auto", "blink at random, or never", choices=BLINKS)
    background: str = _option(
        KEEP,
        "keep the background of the image, which is static, or replace it with a color such as green or #00ff00; "
        "transparent needs a .webm or PNG output",
        metavar="COLOR",
    )
    face: int | None = _option(
        None, "which face of several to use; 1 is the largest (default: the largest)", whole=limits.FACE
    )
    seed: int = _option(0, "seed of motion and blinks, 0 or more", whole=limits.SEED)

    def change(self, **changes: Any) -> RenderOptions:
        """Return the options with other values of some.

        Raises:
            ArgumentError: there is no option of a name.
        """
        known = [part.name for part in fields(self)]
        for name in changes:
            if name not in known:
                hint = f"{limits.suggest(name, known)}The options are {', '.join(known)}."
                raise ArgumentError(name, None, "is not an option of rendering", hint)
        return replace(self, **changes)

    def check(self, *, continues: bool = False) -> RenderOptions:
        """Return the options if each is known and in range, and the renderer can do what they ask for.

        Args:
            continues: whether the video begins where another one ended.

        Raises:
            ArgumentError: an option cannot be used.
        """
        for part in fields(self):
            value, rules = getattr(self, part.name), part.metadata
            if rules["choices"] is not None:
                limits.require_choice(part.name, value, rules["choices"])
            if rules["whole"] is not None and not (value is None and part.default is None):
                rules["whole"].require(part.name, value)
            if rules["number"] is not None:
                limits.require_number(part.name, value, *rules["number"])
        check_turn(self.turn)
        check_pose(self.pose)
        parse_color(self.background)
        if self.framing == "picture" and self.background != KEEP:
            reason = "cannot replace that of a whole picture"
            raise ArgumentError("background", self.background, reason, "Use the framing crop.")
        check_renderer(self.method, self.renderer, self.refine, self.background, continues)
        return self

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that the options name."""
        return () if self.pose in MOTIONS else (Path(self.pose),)


def combine_options(options: RenderOptions | None, changes: Mapping[str, Any]) -> RenderOptions:
    """Return options (the defaults if there are none) with other values of some."""
    return (options or RenderOptions()).change(**changes)


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
    angles = [turn] if isinstance(turn, (Real, str)) else list(turn)
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
    # It takes long to import, and most commands need no color.
    from PIL import ImageColor

    question = limits.suggest(background, (KEEP, TRANSPARENT, *ImageColor.colormap))
    hint = f'{question}Use keep, transparent, or a color such as green or "#00ff00".'
    try:
        color = ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError) as error:
        raise ArgumentError("background", str(background), "is not a color", hint) from error
    if len(color) != 3 or max(color) > 255:
        raise ArgumentError("background", str(background), "is not a color of three values up to 255", hint)
    return color
