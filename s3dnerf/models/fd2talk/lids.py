"""Blinks of generated motion, kept as short and as frequent as those of people.

The model is trained on people who also look down, at notes for example, with lids that stay low for a second. Without
the gaze, which the renderer cannot move, such lids look asleep.
"""

from __future__ import annotations

import numpy as np

from s3dnerf.constants import FPS
from s3dnerf.face.motion import CLOSED_EYE_OPENNESS, make_blink_profile

CLOSED_OPENNESS, OPEN_OPENNESS = 0.65, 0.9
"""Openness relative to the usual one below which eyes count as closed, and to which a closure that ends opens them."""
MAX_CLOSED_FRAMES = 4
"""Frames after which closed eyes begin to open."""
OPENING_FRAMES = 4
"""Frames in which they open."""
MIN_PAUSE_FRAMES = 18
"""Frames after a blink in which eyes stay open: 0.7 seconds, as in idle motion."""
LONGEST_PAUSE_SECONDS = (5.0, 8.0)
"""Range of the time without a blink after which one is added."""


class LidRegulator:
    """Shortens closures and adds missing blinks, one block of frames after the other.

    Short blinks that are apart stay exactly as they are.
    """

    def __init__(self, seed: int) -> None:
        """Prepare a recording; ``seed`` determines when missing blinks are added."""
        self.rng = np.random.default_rng(seed)
        self.profile = make_blink_profile()
        self.closed_frames = 0
        """Frames of the closure so far; 0 while eyes are open."""
        self.open_frames = int(self.rng.uniform(0.0, LONGEST_PAUSE_SECONDS[0]) * FPS)
        """Frames since the last closure, as if the recording had started earlier."""
        self.refractory = 0
        """Frames for which eyes stay open after a blink."""
        self.lift = 0.0
        """How far lids are held open: 0 not at all, 1 to ``OPEN_OPENNESS`` at least."""
        self.added_frames = len(self.profile)
        """Frames of the added blink that have passed; all of them while there is none."""
        self.longest_pause = self.draw_pause()

    def draw_pause(self) -> int:
        """Return the number of frames without a blink after which one is added."""
        return int(self.rng.uniform(*LONGEST_PAUSE_SECONDS) * FPS)

    def apply(self, eyes: np.ndarray) -> np.ndarray:
        """Return the openness of both eyes, ``float32 [T, 2]``, of the next frames."""
        return np.array([self.regulate(frame) for frame in eyes], np.float32).reshape(-1, 2)

    def regulate(self, eyes: np.ndarray) -> np.ndarray:
        """Return the openness ``[2]`` of one frame."""
        is_held = self.lift == 1.0 and float(eyes.mean()) < CLOSED_OPENNESS
        wants_open = self.closed_frames >= MAX_CLOSED_FRAMES or self.refractory > 0 or is_held
        step = 1.0 / OPENING_FRAMES
        self.lift = min(self.lift + step, 1.0) if wants_open else max(self.lift - step, 0.0)
        eyes = eyes + self.lift * np.maximum(OPEN_OPENNESS - eyes, 0.0)
        if self.open_frames >= self.longest_pause and self.added_frames == len(self.profile):
            self.added_frames = 0
        if self.added_frames < len(self.profile):
            closed = np.minimum(eyes, CLOSED_EYE_OPENNESS)
            eyes = eyes + self.profile[self.added_frames] * (closed - eyes)
            self.added_frames += 1
        self.count(float(eyes.mean()) < CLOSED_OPENNESS)
        return eyes

    def count(self, is_closed: bool) -> None:
        """Count a frame with closed or open eyes."""
        self.refractory = max(self.refractory - 1, 0)
        if is_closed:
            self.closed_frames += 1
            self.open_frames = 0
            return
        if self.closed_frames:
            self.refractory, self.longest_pause = MIN_PAUSE_FRAMES, self.draw_pause()
        self.closed_frames = 0
        self.open_frames += 1
