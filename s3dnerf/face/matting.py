"""Matting: how much of each pixel belongs to the person, by the segmentation model that mediapipe brings."""

from __future__ import annotations

import numpy as np

from s3dnerf.face.landmarks import hide_native_log, load_mediapipe, run_graph, warm_up

GENERAL_MODEL = 0
"""Mediapipe's number of the model for square pictures; it works at 256 x 256 pixels."""


def segment_person(image: np.ndarray) -> np.ndarray:
    """Tell person and background apart.

    image: uint8 [S, S, 3], a head crop. Returns float32 [S, S]: 1 on the person (hair, neck and shoulders
    included), 0 on the background, in between along the outline. Raises UserError when mediapipe is missing.
    """
    segmentation = load_mediapipe().solutions.selfie_segmentation
    with hide_native_log():
        graph = warm_up(segmentation.SelfieSegmentation(model_selection=GENERAL_MODEL))
    with graph:
        mask = run_graph(graph, np.ascontiguousarray(image)).segmentation_mask
    return np.clip(mask, 0.0, 1.0).astype(np.float32)
