"""Contact sheets: moments of a clip, the real row above the made one, and both mouths enlarged below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3dnerf.evaluation.tracking import FaceTrack, cut_window, measured_size
from s3dnerf.media.audio import FPS
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import MOUTH_POINTS

MOMENTS = 10
FACE_SIDE = 176
OVERVIEW_SIDE = 112
MOUTH_SHARE = 0.55
"""Height of a mouth strip over its width."""
LABEL_HEIGHT = 20
MARGIN_WIDTH = 152
PAPER, INK = (255, 255, 255), (30, 30, 30)


def choose_moments(track: FaceTrack, count: int = MOMENTS) -> np.ndarray:
    """Frame numbers that show a clip well, ascending int [count or fewer], never the first frame.

    The clip is cut into `count` stretches; from one the widest lip opening is taken, from the next the
    narrowest, and so on, so that open and closed mouths are both seen.
    """
    stretches = np.array_split(np.arange(1, len(track)), min(count, len(track) - 1))
    opening = track.lip_opening
    moments = []
    for number, frames in enumerate(stretches):
        known = frames[np.isfinite(opening[frames])]
        if len(known):
            pick = np.argmin if number % 2 else np.argmax
            moments.append(int(known[pick(opening[known])]))
        else:
            moments.append(int(frames[len(frames) // 2]))
    return np.array(moments, int)


def cut_mouth(frame: np.ndarray, track: FaceTrack, index: int, width: int) -> np.ndarray:
    """The mouth of `frame` [H, W, 3], uint8 [width * 0.55, width, 3], where `track` has it at frame `index`.

    The window is 1.7 times as wide as the clip's usual mouth, so the enlargement is the same in the whole
    clip.
    """
    frame = resize_image(frame, measured_size(frame))
    mouth = track.plain[:, MOUTH_POINTS]
    known = np.flatnonzero(np.isfinite(mouth[:, 0, 0]))
    if not len(known):
        return np.full((round(width * MOUTH_SHARE), width, 3), 255, np.uint8)
    nearest = known[np.abs(known - index).argmin()]
    spread = np.ptp(mouth[known, :, 0], axis=1)
    size = np.array([1.0, MOUTH_SHARE]) * 1.7 * float(np.median(spread))
    window = cut_window(frame, mouth[nearest].mean(axis=0), size)
    return resize_image(window, (round(width * MOUTH_SHARE), width))


def draw_clip_sheet(
    real: Sequence[np.ndarray],
    made: Sequence[np.ndarray],
    track: FaceTrack,
    moments: np.ndarray,
    title: str,
    made_label: str = "made",
    side: int = FACE_SIDE,
) -> np.ndarray:
    """Sheet of one clip, uint8 [H, W, 3]: real faces, made faces, real and made mouths, a column a moment.

    real, made: the frames [H, W, 3] at `moments`. Both mouths are cut where the *real* mouth is, so one
    that is out of place shows.
    """
    faces = [[_fit_height(frame, side) for frame in frames] for frames in (real, made)]
    width = faces[0][0].shape[1]
    mouths = [
        [cut_mouth(frame, track, index, width) for frame, index in zip(frames, moments, strict=True)]
        for frames in (real, made)
    ]
    strips = [np.concatenate(row, axis=1) for row in (*faces, *mouths)]
    labels = ("real", made_label, "real mouth", f"{made_label} mouth")
    header = _draw_labels(strips[0].shape[1], width, [f"{index / FPS:.2f} s" for index in moments])
    rows = [_draw_margin(strip, label) for strip, label in zip(strips, labels, strict=True)]
    return np.concatenate([_draw_title(title, rows[0].shape[1]), _draw_margin(header, ""), *rows], axis=0)


def stack_sheets(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Put sheets under each other, the narrower ones padded with white at the right."""
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, 8), (0, width - sheet.shape[1]), (0, 0)), constant_values=255) for sheet in sheets]
    return np.concatenate(padded, axis=0)


def _fit_height(frame: np.ndarray, height: int) -> np.ndarray:
    return resize_image(frame, (height, round(frame.shape[1] * height / frame.shape[0])))


def _draw_text(width: int, height: int, texts: Sequence[tuple[int, int, str]], size: int) -> np.ndarray:
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for x, y, text in texts:
        draw.text((x, y), text, fill=INK, font=ImageFont.load_default(size))
    return np.array(picture)


def _draw_title(title: str, width: int) -> np.ndarray:
    return _draw_text(width, LABEL_HEIGHT + 4, [(4, 3, title)], 15)


def _draw_labels(width: int, step: int, labels: Sequence[str]) -> np.ndarray:
    return _draw_text(width, LABEL_HEIGHT, [(number * step + 4, 3, text) for number, text in enumerate(labels)], 12)


def _draw_margin(strip: np.ndarray, label: str) -> np.ndarray:
    height = strip.shape[0]
    return np.concatenate([_draw_text(MARGIN_WIDTH, height, [(4, height // 2 - 8, label)], 12), strip], axis=1)
