"""Matting: how much of each pixel belongs to the person, by the segmentation model that mediapipe brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from s3dnerf.face.landmarks import hide_native_log, load_mediapipe, run_graph, warm_up

GENERAL_MODEL = 0
"""Mediapipe's number of the model for square pictures; it works at 256 x 256 pixels."""


@contextmanager
def open_segmentation() -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Give a function that does for picture after picture what `segment_person` does for one.

    Raises UserError when mediapipe is missing.
    """
    segmentation = load_mediapipe().solutions.selfie_segmentation
    with hide_native_log():
        graph = warm_up(segmentation.SelfieSegmentation(model_selection=GENERAL_MODEL))
    with graph:

        def segment(image: np.ndarray) -> np.ndarray:
            mask = run_graph(graph, np.ascontiguousarray(image)).segmentation_mask
            return np.clip(mask, 0.0, 1.0).astype(np.float32)

        yield segment


def segment_person(image: np.ndarray) -> np.ndarray:
    """Tell person and background apart.

    image: uint8 [S, S, 3], a head crop. Returns float32 [S, S]: 1 on the person (hair, neck and shoulders
    included), 0 on the background, in between along the outline. Raises UserError when mediapipe is missing.
    """
    with open_segmentation() as segment:
        return segment(image)


def widen_matte(matte: np.ndarray, gain: float = 4.0, margin: float = 0.012) -> np.ndarray:
    """Let a matte take in what may be the person: strands of hair, and ``margin`` sides of the picture around them.

    matte: float32 [S, S]; so is the result, ``gain`` times as large and at most 1.
    """
    side = 2 * max(round(margin * len(matte)), 1) + 1
    near = cv2.dilate(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.minimum(gain * near, 1.0).astype(np.float32)


def paint_behind(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Continue what surrounds a person over the person (Telea, 2004), as if nobody were there.

    image: uint8 [S, S, 3]; hidden: bool [S, S], where it shows the person. Returns uint8 [S, S, 3]: the image itself
    elsewhere, and everywhere if the person fills it.
    """
    return image.copy() if hidden.all() else cv2.inpaint(image, hidden.astype(np.uint8), 5, cv2.INPAINT_TELEA)
