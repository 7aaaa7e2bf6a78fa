import numpy as np

from s3dnerf.evaluation.contact_sheet import (
    FACE_SIDE,
    LABEL_HEIGHT,
    MARGIN_WIDTH,
    crop_mouth,
    draw_clip_sheet,
    draw_overview,
    select_sheet_frames,
)
from s3dnerf.evaluation.tracking import FaceTrack
from s3dnerf.metrics import MOUTH_POINTS


class ScriptedTrack(FaceTrack):
    """A track with a mouth 40 pixels wide at (120, 160) and a given lip opening."""

    def __init__(self, opening: np.ndarray) -> None:
        plain = np.zeros((len(opening), 468, 2), np.float32)
        angle = np.linspace(0, 2 * np.pi, len(MOUTH_POINTS), endpoint=False)
        plain[:, MOUTH_POINTS] = np.stack([120 + 20 * np.cos(angle), 160 + 8 * np.sin(angle)], axis=-1)
        super().__init__(np.zeros((len(opening), 478, 3), np.float32), plain, (256, 256))
        self.__dict__["lip_opening"] = opening


def test_sheet_frames_show_open_and_closed_mouths_but_not_the_source():
    opening = np.zeros(41)
    opening[[0, 5, 25]] = [9.0, 1.0, 2.0]
    opening[[15, 39]] = -1.0
    moments = select_sheet_frames(ScriptedTrack(opening), 4)
    assert moments.tolist() == [5, 15, 25, 39]


def test_sheet_frames_of_a_clip_shorter_than_the_sheet():
    moments = select_sheet_frames(ScriptedTrack(np.arange(5.0)), 10)
    assert moments.tolist() == [1, 2, 3, 4]


def test_sheet_frames_without_a_face_are_segment_centers():
    moments = select_sheet_frames(ScriptedTrack(np.full(21, np.nan)), 2)
    assert moments.tolist() == [6, 16]


def test_mouth_is_cropped_around_the_lips():
    frame = np.zeros((256, 256, 3), np.uint8)
    frame[160, 120] = 255
    mouth = crop_mouth(frame, ScriptedTrack(np.zeros(3)), 1, 136)
    assert mouth.shape == (75, 136, 3)
    brightest = np.unravel_index(mouth[..., 0].argmax(), mouth.shape[:2])
    assert abs(brightest[0] - 37) <= 3 and abs(brightest[1] - 68) <= 3


def test_mouth_at_the_border_is_padded():
    track = ScriptedTrack(np.zeros(3))
    track.plain[...] -= 118
    assert crop_mouth(np.full((256, 256, 3), 7, np.uint8), track, 1, 60).shape == (33, 60, 3)


def test_sheet_has_target_frames_above_generated_ones():
    red, blue = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    moments = np.array([3, 8])
    sheet = draw_clip_sheet([red] * 2, [blue] * 2, ScriptedTrack(np.zeros(10)), moments, "title")
    top = 2 * LABEL_HEIGHT + 4
    # A mouth is as wide as a face and 0.55 times as high.
    assert FACE_SIDE == 176
    assert sheet.shape == (top + 2 * 176 + 2 * 97, MARGIN_WIDTH + 2 * 176, 3)
    rows = [sheet[top + offset, MARGIN_WIDTH + 264].tolist() for offset in (88, 264, 400, 497)]
    assert rows == [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 0, 255]]
    assert (sheet[:top] < 128).any()


def test_an_overview_stacks_sheets_of_unequal_width_in_smaller():
    # Faces of 176 pixels become 112 pixels high.
    overview = draw_overview([np.zeros((11, 33, 3), np.uint8), np.zeros((22, 55, 3), np.uint8)])
    assert overview.shape == (7 + 8 + 14 + 8, 35, 3)
    assert (overview[3, 25] == 255).all() and (overview[20, 25] == 0).all()
