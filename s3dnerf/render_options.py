"""Rendering options of the library, the command line and the web page, checked before anything is loaded."""

from __future__ import annotations

import math
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
SHOWN = ("color", "depth", "normals")
RATES = (24, 25, 30, 50, 60)
FRAMINGS = ("crop", "picture")
KEEP, TRANSPARENT, BLUR = "keep", "transparent", "blur"
"""Backgrounds that are no color."""
MAX_BLINK_RATE = 60.0
"""Blinks a minute."""
MAX_TURN = 40.0
"""Degrees. Beyond this, most of the visible surface is not in the source image."""


def _option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | tuple[int, ...] | None = None,
    whole: IntRange | None = None,
    number: tuple[float, float] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    file: str | None = None,
) -> Any:
    """Declare an option: its default, its help text, and the values that it can have.

    ``file`` says what a file does, of options that may be one. A server, which takes no names of files, leaves it out.
    """
    metadata = {"help": text, "choices": choices, "whole": whole, "number": number, "metavar": metavar, "file": file}
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
        "for the shipped weights); ignored with framing picture, which keeps the size of the image",
        whole=limits.SIZE,
    )
    max_side: int = _option(
        1920,
        "with framing picture, the largest side of the video in pixels, 64 to 4096; larger images are reduced",
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
        "what makes the frames: the radiance field (the default) or, with method fd2talk, latent diffusion from the "
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
        "static is still",
        metavar="POSE",
        file="a video file provides its own motion",
    )
    turn: tuple[float, float] = _option(
        (0.0, 0.0),
        "rotate the head by this many degrees to the viewer's right and up, -40 to 40 each (default: 0 0)",
        metavar=("RIGHT", "UP"),
    )
    liveliness: float = _option(
        1.0,
        "with pose speech, how lively the head is: 0 (still) to 2 (twice as fast as usual)",
        number=(0.0, limits.MAX_LIVELINESS),
    )
    camera: str | Path | None = _option(
        None,
        "turn the view in the course of the video: orbit",
        metavar="CAMERA",
        file="a JSON file has key frames with seconds, yaw, pitch, roll (degrees) and zoom",
    )
    lip_scale: float = _option(
        1.0, "how far the mouth moves: 0 keeps it closed, 1 is as the speech asks for", number=(0.0, 3.0)
    )
    expression_scale: float = _option(
        1.0, "how far eyes and brows move from the expression in the image", number=(0.0, 3.0)
    )
    blink: str | float | Path = _option(
        "auto",
        "blink at random (auto), never (off), or so many times a minute",
        metavar="BLINK",
        file="a JSON file lists the seconds of blinks",
    )
    overrides: str | Path | None = _option(
        None,
        "a JSON file of key frames with seconds and lip_scale, expression_scale or eye_openness, which change in the "
        "course of the video",
        metavar="FILE",
    )
    background: str | Path = _option(
        KEEP,
        "keep the background of the image, which is static; blur it; or replace it with a color such as green or "
        "#00ff00; transparent needs a .webm or PNG output",
        metavar="BACKGROUND",
        file="an image file is shown behind the person",
    )
    fps: int = _option(25, "frames per second: 24, 25, 30, 50 or 60", metavar="N", choices=RATES)
    show: str = _option("color", "what the frames show: the person, its depth or its normals", choices=SHOWN)
    side_by_side: bool = _option(False, "show the image to the left of the video")
    face: int | None = _option(
        None, "which face of several to use; 1 is the largest (default: the largest)", whole=limits.FACE
    )
    seed: int = _option(0, "seed of motion and blinks, 0 or more", whole=limits.SEED)

    def change(self, /, **changes: Any) -> RenderOptions:
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
        check_blink(self.blink)
        for name in ("camera", "overrides"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("camera", "orbit") and not is_file(value):
                raise ArgumentError(name, str(value), "is no file", "Name a JSON file of key frames.")
        self._check_background()
        check_renderer(self.method, self.renderer, self.refine, str(self.background), continues)
        self._check_field()
        return self

    def _check_background(self) -> None:
        if self.background not in (KEEP, TRANSPARENT, BLUR) and not is_named_file(self.background):
            parse_color(self.background)
        if self.framing == "picture" and self.background != KEEP:
            reason = "cannot replace that of a whole picture"
            raise ArgumentError("background", str(self.background), reason, "Use the framing crop.")
        if self.side_by_side and self.background == TRANSPARENT:
            raise ArgumentError("side_by_side", None, "needs a background", "Use another background.")

    def _check_field(self) -> None:
        """Check what only the radiance field can do."""
        if self.show != "color" and (self.refine, self.background, self.framing) != ("off", KEEP, "crop"):
            hint = "Leave out refine, background and framing."
            raise ArgumentError("show", self.show, "shows the geometry of the head alone", hint)
        if self.renderer == "nerf":
            return
        for name in ("camera", "overrides", "lip_scale", "expression_scale", "show", "fps"):
            if getattr(self, name) != RenderOptions.__dataclass_fields__[name].default:
                hint = "Use the renderer nerf."
                raise ArgumentError(name, str(getattr(self, name)), "needs the radiance field", hint)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that the options name."""
        values = [None if self.pose in MOTIONS else self.pose, self.camera, self.overrides, self.blink, self.background]
        return tuple(Path(value) for value in values if isinstance(value, (str, Path)) and is_named_file(value))


def combine_options(options: RenderOptions | None, changes: Mapping[str, Any]) -> RenderOptions:
    """Return options (the defaults if there are none) with other values of some."""
    return (options or RenderOptions()).change(**changes)


def check_renderer(method: str, renderer: str, refine: str, background: str, continues: bool) -> None:
    """Raise UserError if the renderer cannot do what the other options ask for.

    ``continues`` tells whether the video begins where another one ended.
    """
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
        # Integers may be too large to be floats.
        words = " ".join(f"{angle:g}" if abs(angle) < 1e6 else str(angle)[:20] for angle in angles)
        raise ArgumentError("turn", words, reason, hint)


def check_pose(pose: str | Path) -> None:
    """Raise UserError unless ``pose`` is one of :data:`MOTIONS` or a file."""
    if pose not in MOTIONS and not is_file(pose):
        hint = f"{limits.suggest(pose, MOTIONS)}Use static, idle, speech or the path of a video."
        raise ArgumentError("pose", str(pose), "is no video file", hint)


def is_named_file(value: object) -> bool:
    """Tell whether the value of an option is the path of a file."""
    return isinstance(value, (str, Path)) and is_file(value)


def parse_color(background: str | Path) -> tuple[int, int, int] | None:
    """Return the RGB values, 0 to 255, of the name or hexadecimal code of a color; None for other backgrounds.

    Raises:
        ArgumentError: it is neither "keep", "blur", "transparent", a file nor a color.
    """
    if background in (KEEP, TRANSPARENT, BLUR) or is_named_file(background):
        return None
    # It takes long to import, and most commands need no color.
    from PIL import ImageColor

    question = limits.suggest(background, (KEEP, BLUR, TRANSPARENT, *ImageColor.colormap))
    hint = f'{question}Use keep, blur, transparent, the path of an image, or a color such as green or "#00ff00".'
    try:
        color = ImageColor.getrgb(str(background) if isinstance(background, str) else "")
    except (ValueError, AttributeError, TypeError) as error:
        raise ArgumentError("background", str(background), "is not a color", hint) from error
    if len(color) != 3 or max(color) > 255:
        raise ArgumentError("background", str(background), "is not a color of three values up to 255", hint)
    return color


def check_blink(blink: object) -> None:
    """Raise ArgumentError unless ``blink`` is "auto", "off", a rate or a file."""
    if blink in ("auto", "off"):
        return
    question = limits.suggest(blink, ("auto", "off"))
    hint = f"{question}Use auto, off, blinks a minute (0 to {MAX_BLINK_RATE:g}), or a JSON file with a list of seconds."
    rate = read_rate(blink)
    if rate is None and not is_named_file(blink):
        raise ArgumentError("blink", str(blink), "is not known", hint)
    if rate is not None and not 0.0 <= rate <= MAX_BLINK_RATE:
        raise ArgumentError("blink", str(blink), "is out of range", hint)


def read_rate(blink: object) -> float | None:
    """Return the blinks a minute; None if it is no number."""
    try:
        return None if isinstance(blink, bool) else float(blink)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
