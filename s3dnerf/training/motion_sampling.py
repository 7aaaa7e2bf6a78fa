"""Fit of the sampling settings of motion diffusion to people who are not trained on.

Guidance of the expression makes lips open wider; it is chosen so that they open as wide as real ones. The speed that
the model is asked for is chosen so that heads move as fast as real ones, and factors of brows and fast head motion so
that these have their real amplitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.signal import periodogram
from tqdm import tqdm

from s3dnerf.constants import FPS
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_brow_height, measure_lip_height
from s3dnerf.metrics.head_motion import correlate
from s3dnerf.models.fd2talk.calibration import FAST_HZ
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion
from s3dnerf.models.fd2talk.motion_generator import SpeechMotion
from s3dnerf.training.motion_data import MotionClip, measure_speed

GUIDANCES = (0.8, 1.0, 1.25)
SPEEDS, FACTORS = (2.0, 60.0), (0.5, 2.5)
"""Ranges of the fitted speed in degrees per second, and of the factors."""
EXPERT_GUIDANCE = 1.0
"""Guidance by the lip expert that is tried."""
MIN_GAIN = 0.02
"""Gain in lip agreement from which guidance by the lip expert is worth its time."""
ROUNDS = 2
"""Corrections of speed and factors, for the best guidance."""
MIN_AMOUNT = 1e-6


def fit_sampling(model: MotionDiffusion, clips: Sequence[MotionClip], seed: int) -> MotionSamplingConfig:
    """Return the sampling settings with which a model moves as much as the people of clips.

    Args:
        model: in evaluation mode.
        clips: of people who are not trained on.
        seed: of the motion.
    """
    people = [clip.person for clip in clips]
    motions = [MotionCoefficients.unflatten(clip.versions[0].motion) for clip in clips]
    real = measure_amounts(motions, people)
    bar = tqdm(total=len(GUIDANCES) + 1 + ROUNDS, desc="fitting sampling settings", dynamic_ncols=True)

    def compare(sampling: MotionSamplingConfig) -> tuple[MotionSamplingConfig, MotionAmounts, float]:
        generated = generate_all(model, clips, sampling, seed)
        bar.update()
        agreement = measure_lip_agreement(motions, generated, people)
        return sampling, measure_amounts(generated, people) / real, agreement

    plain = replace(model.config.sampling, speed=real.speed, brow_factor=1.0, fast_factor=1.0, expert_guidance=0.0)
    found = [compare(replace(plain, expression_guidance=guidance)) for guidance in GUIDANCES]
    # All count as ratios, so twice as much is as wrong as half as much.
    unguided = min(found, key=lambda one: abs(np.log(one[1].lips)))
    guided = compare(replace(unguided[0], expert_guidance=EXPERT_GUIDANCE))
    found = [guided if guided[2] >= unguided[2] + MIN_GAIN else unguided]
    for _ in range(ROUNDS):
        sampling, moved, _ = found[-1]
        sampling = replace(
            sampling,
            speed=limit(sampling.speed / moved.speed, SPEEDS),
            brow_factor=limit(sampling.brow_factor / moved.brows, FACTORS),
            fast_factor=limit(sampling.fast_factor / moved.fast, FACTORS),
        )
        found.append(compare(sampling))
    bar.close()
    best, moved, agreement = min(found, key=lambda one: sum(abs(np.log(ratio)) for ratio in vars(one[1]).values()))
    settings = ", ".join(f"{name} {value:.3g}" for name, value in vars(best).items())
    tqdm.write(
        f"sampling: {settings}. On people held out, heads move {moved.speed:.2f}, lips {moved.lips:.2f}, brows "
        f"{moved.brows:.2f} and fast motion {moved.fast:.2f} times as much as real ones. Lip opening r "
        f"{agreement:.3f}; {guided[2]:.3f} with guidance by the lip expert, {unguided[2]:.3f} without"
    )
    return best


@dataclass(frozen=True)
class MotionAmounts:
    """How much people move."""

    speed: float
    """Mean speed of the head in degrees per second."""
    lips: float
    """Standard deviation of the gap between the inner lips in head units."""
    brows: float
    """Likewise of the height of the brows."""
    fast: float
    """Square root of the power of head rotation above 1.5 Hz over that below."""

    def __truediv__(self, other: MotionAmounts) -> MotionAmounts:
        return MotionAmounts(*(getattr(self, name) / getattr(other, name) for name in vars(self)))


def measure_amounts(motions: Sequence[MotionCoefficients], people: Sequence[str]) -> MotionAmounts:
    """Measure motions of these people; people weigh the same. No amount is 0, so that they have ratios."""
    components = load_shipped_basis().components
    gap, height = measure_lip_height(components), measure_brow_height(components)
    share = average(people, [measure_fast_share(motion) for motion in motions])
    amounts = MotionAmounts(
        average(people, [measure_speed(motion) for motion in motions]),
        average(people, [float((motion.expression @ gap).std()) for motion in motions]),
        average(people, [float((motion.expression @ height).std()) for motion in motions]),
        float(np.sqrt(share / max(1.0 - share, MIN_AMOUNT))),
    )
    return MotionAmounts(*(max(amount, MIN_AMOUNT) for amount in vars(amounts).values()))


def measure_lip_agreement(
    real: Sequence[MotionCoefficients], generated: Sequence[MotionCoefficients], people: Sequence[str]
) -> float:
    """Return the correlation of generated and real lip openings; people weigh the same, and 0 is for still lips."""
    gap = measure_lip_height(load_shipped_basis().components)
    pairs = zip(real, generated, strict=True)
    return average(people, [correlate(one.expression @ gap, other.expression @ gap) for one, other in pairs])


def measure_fast_share(motion: MotionCoefficients) -> float:
    """Return the share of the power of head rotation above 1.5 Hz."""
    frequencies, power = periodogram(motion.pose[:, :3].astype(np.float64), fs=FPS, window="hann", axis=0)
    total = power.sum()
    return float(power[frequencies >= FAST_HZ].sum() / total) if total > 0 else 0.0


def limit(value: float, bounds: tuple[float, float]) -> float:
    """Return the nearest value within bounds."""
    return float(np.clip(value, *bounds))


def generate_all(
    model: MotionDiffusion, clips: Sequence[MotionClip], sampling: MotionSamplingConfig, seed: int
) -> list[MotionCoefficients]:
    """Generate the motion of each clip from its speech."""
    generator, motions = SpeechMotion(model, sampling), []
    for number, clip in enumerate(clips):
        assert clip.track.speech is not None, "silent clips are not trained on"
        motions.append(generator.generate(clip.track.speech, len(clip.versions[0].motion), seed + number))
    return motions


def average(people: Sequence[str], values: Sequence[float]) -> float:
    """Return the mean over people of the means over their clips."""
    names = sorted(set(people))
    rows = np.array(values)
    return float(np.mean([rows[[own == name for own in people]].mean() for name in names]))
