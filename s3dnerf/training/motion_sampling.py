"""Fit of the sampling settings of motion diffusion to people who are not trained on.

Guidance of the expression makes lips open wider; it is chosen so that they open as wide as real ones. The speed that
the model is asked for is chosen so that heads move as fast as real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from s3dnerf.data.motion_statistics import measure_lip_height
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_generator import SpeechMotion
from s3dnerf.training.motion_data import MotionClip, measure_speed

GUIDANCES = (0.8, 1.0, 1.25)
MIN_SPEED_SETTING, MAX_SPEED_SETTING = 2.0, 60.0
"""Range of the fitted speed in degrees per second."""
ROUNDS = 2
"""Corrections of the speed for each guidance."""


def fit_sampling(model: MotionDiffusion, clips: Sequence[MotionClip], seed: int) -> MotionSamplingConfig:
    """Return the sampling settings with which a model moves as much as the people of clips.

    Args:
        model: in evaluation mode.
        clips: of people who are not trained on.
        seed: of the motion.
    """
    real = [MotionCoefficients.unflatten(clip.versions[0].motion) for clip in clips]
    people = [clip.person for clip in clips]
    speed = average(people, [clip.speed for clip in clips])
    opening = average(people, [measure_lip_range(motion) for motion in real])
    found: list[tuple[float, MotionSamplingConfig, float, float]] = []
    bar = tqdm(total=len(GUIDANCES) * (ROUNDS + 1), desc="fitting sampling settings", dynamic_ncols=True)
    for guidance in GUIDANCES:
        sampling = replace(model.config.sampling, expression_guidance=guidance, speed=speed)
        for _ in range(ROUNDS + 1):
            motions = generate_all(model, clips, sampling, seed)
            bar.update()
            moved = average(people, [measure_speed(motion) for motion in motions]) / speed
            opened = average(people, [measure_lip_range(motion) for motion in motions]) / opening
            wanted = float(np.clip(sampling.speed / moved, MIN_SPEED_SETTING, MAX_SPEED_SETTING))
            # Both count as ratios, so twice as much is as wrong as half as much.
            wrong = abs(np.log(moved)) + abs(np.log(opened))
            found.append((float(wrong), sampling, moved, opened))
            sampling = replace(sampling, speed=wanted)
    bar.close()
    _, best, moved, opened = min(found, key=lambda item: item[0])
    tqdm.write(
        f"sampling: guidance of the expression {best.expression_guidance:g}, speed {best.speed:.1f} degrees a second. "
        f"On people held out, heads move {moved:.2f} and lips {opened:.2f} times as much as real ones"
    )
    return best


def generate_all(
    model: MotionDiffusion, clips: Sequence[MotionClip], sampling: MotionSamplingConfig, seed: int
) -> list[MotionCoefficients]:
    """Generate the motion of each clip from its speech."""
    generator, motions = SpeechMotion(model, sampling), []
    for number, clip in enumerate(clips):
        assert clip.track.speech is not None, "silent clips are not trained on"
        motions.append(generator.generate(clip.track.speech, len(clip.versions[0].motion), seed + number))
    return motions


def measure_lip_range(motion: MotionCoefficients) -> float:
    """Return the standard deviation of the gap between the inner lips in head units."""
    gaps = measure_lip_height(load_shipped_basis().components)
    return float((motion.expression @ gaps).std())


def average(people: Sequence[str], values: Sequence[float]) -> float:
    """Return the mean over people of the means over their clips."""
    names = sorted(set(people))
    rows = np.array(values)
    return float(np.mean([rows[[own == name for own in people]].mean() for name in names]))
