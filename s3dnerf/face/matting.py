"""Person mattes, from the segmentation model that mediapipe ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from s3dnerf.face.landmarks import load_mediapipe, run_graph, suppress_native_log, warm_up

GENERAL_MODEL = 0
"""Mediapipe's number of the model for square images; it works at 256 x 256 pixels."""


@contextmanager
def open_segmenter() -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Load the model once for many images; yields a function like :func:`segment_person`.

    Raises:
        UserError: mediapipe is missing.
    """
    segmentation = load_mediapipe().solutions.selfie_segmentation
    with suppress_native_log():
        graph = warm_up(segmentation.SelfieSegmentation(model_selection=GENERAL_MODEL))
    with graph:

        def segment(image: np.ndarray) -> np.ndarray:
            mask = run_graph(graph, np.ascontiguousarray(image)).segmentation_mask
            return np.clip(mask, 0.0, 1.0).astype(np.float32)

        yield segment


def segment_person(image: np.ndarray) -> np.ndarray:
    """Separate the person from the background.

    Args:
        image: ``uint8 [S, S, 3]``, a head crop.

    Returns:
        Matte ``float32 [S, S]``: 1 on the person (including hair, neck and shoulders), 0 on the background, in between
        along the outline.

    Raises:
        UserError: mediapipe is missing.
    """
    with open_segmenter() as segment:
        return segment(image)


def dilate_matte(matte: np.ndarray, gain: float = 4.0, margin: float = 0.012) -> np.ndarray:
    """Extend a matte to everything that may belong to the person, such as strands of hair.

    Args:
        matte: ``float32 [S, S]``.
        gain: factor for the matte, which is then clipped to 1.
        margin: radius of the dilation relative to the image's side.

    Returns:
        ``float32 [S, S]``.
    """
    side = 2 * max(round(margin * len(matte)), 1) + 1
    dilated = cv2.dilate(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    return np.minimum(gain * dilated, 1.0).astype(np.float32)


def inpaint_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replace the person in an image by continuing the surrounding background (Telea, 2004).

    Args:
        image: ``uint8 [S, S, 3]``.
        mask: ``bool [S, S]``, True on the person.

    Returns:
        ``uint8 [S, S, 3]``, unchanged outside the mask, and everywhere if the person fills the image.
    """
    return image.copy() if mask.all() else cv2.inpaint(image, mask.astype(np.uint8), 5, cv2.INPAINT_TELEA)
