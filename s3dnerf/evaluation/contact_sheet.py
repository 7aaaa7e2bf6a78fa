"""Contact sheets: sampled frames of a clip, target above generated, with both mouths enlarged below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3dnerf.constants import FPS
from s3dnerf.evaluation.tracking import FaceTrack, crop_window, evaluation_size
from s3dnerf.media.image import resize_image
from s3dnerf.metrics import MOUTH_POINTS

SHEET_COLUMNS = 10
FACE_SIDE = 176
"""Height of the faces on the sheet of a clip, in pixels."""
OVERVIEW_SIDE = 112
"""Height of the faces on an overview of many clips, in pixels."""
MOUTH_ASPECT = 0.55
"""Height of a mouth crop over its width."""
LABEL_HEIGHT = 20
MARGIN_WIDTH = 152
BACKGROUND_COLOR, TEXT_COLOR = (255, 255, 255), (30, 30, 30)


def select_sheet_frames(track: FaceTrack, count: int = SHEET_COLUMNS) -> np.ndarray:
    """Select representative frames, ascending ``int [count or fewer]``; never the first frame.

    The clip is cut into ``count`` segments, which contribute their widest and their narrowest lip opening in turn, so
    that both open and closed mouths are shown.
    """
    segments = np.array_split(np.arange(1, len(track)), min(count, len(track) - 1))
    opening = track.lip_opening
    selected = []
    for number, frames in enumerate(segments):
        known = frames[np.isfinite(opening[frames])]
        if len(known):
            pick = np.argmin if number % 2 else np.argmax
            selected.append(int(known[pick(opening[known])]))
        else:
            selected.append(int(frames[len(frames) // 2]))
    return np.array(selected, int)


def crop_mouth(frame: np.ndarray, track: FaceTrack, index: int, width: int) -> np.ndarray:
    """Crop the mouth of ``frame [H, W, 3]`` at its place in frame ``index`` of ``track``.

    The crop is 1.7 times as wide as the median mouth of the clip, so the scale is constant within a clip.
    Returns ``uint8 [0.55 width, width, 3]``.
    """
    frame = resize_image(frame, evaluation_size(frame))
    mouth = track.plain[:, MOUTH_POINTS]
    known = np.flatnonzero(np.isfinite(mouth[:, 0, 0]))
    if not len(known):
        return np.full((round(width * MOUTH_ASPECT), width, 3), 255, np.uint8)
    nearest = known[np.abs(known - index).argmin()]
    spread = np.ptp(mouth[known, :, 0], axis=1)
    size = np.array([1.0, MOUTH_ASPECT]) * 1.7 * float(np.median(spread))
    window = crop_window(frame, mouth[nearest].mean(axis=0), size)
    return resize_image(window, (round(width * MOUTH_ASPECT), width))


def draw_clip_sheet(
    target: Sequence[np.ndarray],
    generated: Sequence[np.ndarray],
    track: FaceTrack,
    moments: np.ndarray,
    title: str,
    generated_label: str = "generated",
) -> np.ndarray:
    """Draw the sheet of one clip, ``uint8 [H, W, 3]``: target and generated faces, then both mouths.

    Args:
        target: frames ``[H, W, 3]`` numbered ``moments``; a column of the sheet each.
        generated: the same of the generated clip.
        track: of the target clip. Both mouths are cropped at the target mouth, so that misplaced ones are visible.
        moments: frame numbers.
        title: above the sheet.
        generated_label: of the rows of the generated clip.
    """
    faces = [[_fit_height(frame, FACE_SIDE) for frame in frames] for frames in (target, generated)]
    width = faces[0][0].shape[1]
    mouths = [
        [crop_mouth(frame, track, index, width) for frame, index in zip(frames, moments, strict=True)]
        for frames in (target, generated)
    ]
    strips = [np.concatenate(row, axis=1) for row in (*faces, *mouths)]
    labels = ("target", generated_label, "target mouth", f"{generated_label} mouth")
    header = _draw_labels(strips[0].shape[1], width, [f"{index / FPS:.2f} s" for index in moments])
    rows = [_draw_margin(strip, label) for strip, label in zip(strips, labels, strict=True)]
    return np.concatenate([_draw_title(title, rows[0].shape[1]), _draw_margin(header, ""), *rows], axis=0)


def draw_row_sheet(
    rows: Mapping[str, Sequence[np.ndarray]], moments: np.ndarray, title: str, side: int = FACE_SIDE
) -> np.ndarray:
    """Draw videos of one clip below each other, ``uint8 [H, W, 3]``.

    Args:
        rows: frames ``[H, W, 3]`` numbered ``moments`` by the name of the video, all of one size.
        moments: frame numbers.
        title: above the sheet.
        side: height of the frames in pixels.
    """
    faces = {name: [_fit_height(frame, side) for frame in frames] for name, frames in rows.items()}
    width = next(iter(faces.values()))[0].shape[1]
    header = _draw_labels(width * len(moments), width, [f"{index / FPS:.2f} s" for index in moments])
    strips = [_draw_margin(np.concatenate(frames, axis=1), name) for name, frames in faces.items()]
    return np.concatenate([_draw_title(title, strips[0].shape[1]), _draw_margin(header, ""), *strips], axis=0)


def draw_overview(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Stack sheets of clips, made smaller, vertically, padded with white on the right."""
    ratio = OVERVIEW_SIDE / FACE_SIDE
    sheets = [resize_image(sheet, (round(sheet.shape[0] * ratio), round(sheet.shape[1] * ratio))) for sheet in sheets]
    width = max(sheet.shape[1] for sheet in sheets)
    padded = [np.pad(sheet, ((0, 8), (0, width - sheet.shape[1]), (0, 0)), constant_values=255) for sheet in sheets]
    return np.concatenate(padded, axis=0)


def _fit_height(frame: np.ndarray, height: int) -> np.ndarray:
    return resize_image(frame, (height, round(frame.shape[1] * height / frame.shape[0])))


def _draw_text(width: int, height: int, texts: Sequence[tuple[int, int, str]], size: int) -> np.ndarray:
    picture = Image.new("RGB", (width, height), BACKGROUND_COLOR)
    draw = ImageDraw.Draw(picture)
    for x, y, text in texts:
        draw.text((x, y), text, fill=TEXT_COLOR, font=ImageFont.load_default(size))
    return np.array(picture)


def _draw_title(title: str, width: int) -> np.ndarray:
    return _draw_text(width, LABEL_HEIGHT + 4, [(4, 3, title)], 15)


def _draw_labels(width: int, step: int, labels: Sequence[str]) -> np.ndarray:
    return _draw_text(width, LABEL_HEIGHT, [(number * step + 4, 3, text) for number, text in enumerate(labels)], 12)


def _draw_margin(strip: np.ndarray, label: str) -> np.ndarray:
    height = strip.shape[0]
    return np.concatenate([_draw_text(MARGIN_WIDTH, height, [(4, height // 2 - 8, label)], 12), strip], axis=1)
