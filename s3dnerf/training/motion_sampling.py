"""Fit of the sampling settings of motion diffusion to people.

Guidance of the expression makes lips open wider; it is chosen so that they open about as wide as real ones. The speed
that the model is asked for is chosen so that heads move as fast as real ones, and factors of brows and fast head motion
so that these have their real amplitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.signal import periodogram
from tqdm import tqdm

from s3dnerf.constants import FPS
from s3dnerf.data.clips import open_clips
from s3dnerf.data.config import OFFSET_MARGIN
from s3dnerf.data.tracks import load_sync_offsets
from s3dnerf.errors import UserError
from s3dnerf.face.coefficients import MotionCoefficients, compute_coefficients
from s3dnerf.face.expression_basis import load_shipped_basis
from s3dnerf.face.points import measure_brow_height, measure_lip_height
from s3dnerf.metrics.head_motion import correlate
from s3dnerf.models.fd2talk.calibration import FAST_HZ
from s3dnerf.models.fd2talk.config import MotionSamplingConfig
from s3dnerf.models.fd2talk.motion_diffusion import MotionDiffusion, load_motion_diffusion
from s3dnerf.models.fd2talk.motion_generator import SpeechMotion
from s3dnerf.training.motion_data import MotionDataConfig, SpokenClip, measure_speed, spread_clips

GUIDANCES = (0.8, 1.25)
"""Guidance of the expression that is tried if lips open too wide or too little without; it takes twice the time."""
LIPS_TOLERANCE = 0.15
"""Relative deviation of lip motion from real motion that needs no guidance."""
SPEEDS, FACTORS = (2.0, 60.0), (0.5, 2.5)
"""Ranges of the fitted speed in degrees per second, and of the factors."""
EXPERT_GUIDANCE = 1.0
"""Guidance by the lip expert that is tried."""
MIN_GAIN = 0.02
"""Gain in lip agreement from which guidance by the lip expert is worth its time."""
ROUNDS = 2
"""Corrections of speed and factors, for the best guidance."""
MIN_AMOUNT = 1e-6
MAX_FITTED_CLIPS = 100
"""Maximum number of clips to which sampling settings are fitted again, about; they are spread over all people."""


def fit_sampling(
    model: MotionDiffusion, clips: Sequence[SpokenClip], seed: int, tries_expert: bool = True
) -> MotionSamplingConfig:
    """Return the sampling settings with which a model moves as much as the people of clips.

    Args:
        model: in evaluation mode.
        clips: of several people.
        seed: of the motion.
        tries_expert: whether guidance by the lip expert is tried; otherwise it stays off.
    """
    people = [clip.person for clip in clips]
    motions = [clip.motion for clip in clips]
    real = measure_amounts(motions, people)
    bar = tqdm(desc="fitting sampling settings", unit="trial", dynamic_ncols=True)

    def compare(sampling: MotionSamplingConfig) -> Trial:
        generated = generate_all(model, clips, sampling, seed)
        bar.update()
        agreement = measure_lip_agreement(motions, generated, people)
        return Trial(sampling, measure_amounts(generated, people) / real, agreement)

    plain = replace(model.config.sampling, speed=real.speed, brow_factor=1.0, fast_factor=1.0, expert_guidance=0.0)
    best = compare(replace(plain, expression_guidance=1.0))
    if abs(np.log(best.moved.lips)) > np.log(1.0 + LIPS_TOLERANCE):
        guided = [compare(replace(plain, expression_guidance=guidance)) for guidance in GUIDANCES]
        # All count as ratios, so twice as much is as wrong as half as much.
        best = min([best, *guided], key=lambda trial: abs(np.log(trial.moved.lips)))
    if tries_expert:
        guided_by_expert = compare(replace(best.sampling, expert_guidance=EXPERT_GUIDANCE))
        tqdm.write(f"lip opening r {best.agreement:.3f}; {guided_by_expert.agreement:.3f} guided by the lip expert")
        best = guided_by_expert if guided_by_expert.agreement >= best.agreement + MIN_GAIN else best
    found = [best]
    for _ in range(ROUNDS):
        sampling, moved = found[-1].sampling, found[-1].moved
        sampling = replace(
            sampling,
            speed=limit(sampling.speed / moved.speed, SPEEDS),
            brow_factor=limit(sampling.brow_factor / moved.brows, FACTORS),
            fast_factor=limit(sampling.fast_factor / moved.fast, FACTORS),
        )
        found.append(compare(sampling))
    bar.close()
    best = min(found, key=lambda trial: sum(abs(np.log(ratio)) for ratio in vars(trial.moved).values()))
    settings = ", ".join(f"{name} {value:.3g}" for name, value in vars(best.sampling).items())
    tqdm.write(
        f"sampling: {settings}. {len(set(people))} people: heads move {best.moved.speed:.2f}, lips "
        f"{best.moved.lips:.2f}, brows {best.moved.brows:.2f} and fast motion {best.moved.fast:.2f} times as much as "
        f"real ones. Lip opening r {best.agreement:.3f}"
    )
    return best.sampling


@dataclass(frozen=True)
class Trial:
    """Sampling settings that were tried."""

    sampling: MotionSamplingConfig
    moved: MotionAmounts
    """Amounts of the generated motion over those of the real one."""
    agreement: float
    """Correlation of generated and real lip openings."""


def refit_sampling(data: MotionDataConfig, checkpoint: str | Path, out: Path, seed: int = 0) -> MotionDiffusion:
    """Fit the sampling settings of a trained model again, to all people of the training split, and save it in a folder.

    Training fits them to the few people held out. How much people move differs much between them, and a model trained
    on a person does not move as much as that person does, so all of them are the better sample.

    Args:
        data: where the clips come from.
        checkpoint: folder or hub id of the model.
        out: where the model is saved.
        seed: of the motion.

    Raises:
        UserError: there are no usable clips.
    """
    model = load_motion_diffusion(checkpoint)
    prepared = open_clips(data.root, data.train_split, offsets=load_sync_offsets(data.offsets, OFFSET_MARGIN))
    clips = []
    for row in spread_clips(prepared, prepared.find_speaking(data.min_frames), MAX_FITTED_CLIPS).tolist():
        track = prepared.load_track(row)
        assert track.speech is not None, "silent clips do not speak"
        clips.append(SpokenClip(track.clip.person, track.speech, compute_coefficients(track)))
    if not clips:
        reason = f"has no clips of the split {data.train_split} with speech in sync of {data.min_frames} frames"
        raise UserError(data.root, reason, "Prepare more clips, or lower data.min_frames.")
    model.config.sampling = fit_sampling(model, clips, seed, tries_expert=False)
    model.save_pretrained(out)
    return model


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
    model: MotionDiffusion, clips: Sequence[SpokenClip], sampling: MotionSamplingConfig, seed: int
) -> list[MotionCoefficients]:
    """Generate the motion of each clip from its speech."""
    generator = SpeechMotion(model, sampling)
    return [generator.generate(clip.speech, len(clip.motion), seed + number) for number, clip in enumerate(clips)]


def average(people: Sequence[str], values: Sequence[float]) -> float:
    """Return the mean over people of the means over their clips."""
    names = sorted(set(people))
    rows = np.array(values)
    return float(np.mean([rows[[own == name for own in people]].mean() for name in names]))
