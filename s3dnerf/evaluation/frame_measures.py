"""Measures of pixels over time, and inside and outside the face, frame by frame."""

from __future__ import annotations

from collections import deque

import numpy as np

from s3dnerf.metrics import (
    draw_face_region,
    measure_flicker,
    measure_gradient_error,
    measure_split_gradient,
)

FRAME_MEASURES = ("gradient_error", "flicker", "face_flicker", "face_detail", "outer_detail")


class FrameMeasures:
    """Accumulates measures of a video, or of a real clip by itself. It keeps three frames."""

    def __init__(self) -> None:
        self._frames: deque[np.ndarray] = deque(maxlen=3)
        self._targets: deque[np.ndarray] = deque(maxlen=2)
        self._regions: deque[np.ndarray] = deque(maxlen=3)
        self._values: dict[str, list[float]] = {name: [] for name in FRAME_MEASURES}

    def add(self, frame: np.ndarray, points: np.ndarray, target: np.ndarray | None = None) -> None:
        """Add the next frame ``uint8 [H, W, 3]``, its landmarks ``[P, 2]`` in pixels, and the real frame, if any."""
        self._frames.append(frame)
        self._regions.append(draw_face_region(points[None], frame.shape[:2])[0])
        # The first frame is the source image.
        if len(self._frames) > 1:
            inside, outside = measure_split_gradient(frame[None], self._regions[-1][None])
            self._values["face_detail"].append(float(inside[0]))
            self._values["outer_detail"].append(float(outside[0]))
        if target is not None:
            self._targets.append(target)
        if len(self._targets) == 2:
            pairs = np.stack(self._targets), np.stack(list(self._frames)[-2:])
            self._values["gradient_error"].append(float(measure_gradient_error(*pairs)[0]))
        if len(self._frames) == 3:
            frames, regions = np.stack(self._frames), np.stack(self._regions)
            self._values["flicker"].append(float(measure_flicker(frames)[0]))
            self._values["face_flicker"].append(float(measure_flicker(frames, regions)[0]))

    def finish(self) -> dict[str, float]:
        """Return the means over frames in which a measure is known; NaN where there are none."""
        known = {name: np.array(values)[np.isfinite(values)] for name, values in self._values.items()}
        return {name: float(values.mean()) if len(values) else float("nan") for name, values in known.items()}
