"""Losses on images (S3D-NeRF, section 3.5) and on motion (landmark correspondences under the deformation)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constants import LUMA_WEIGHTS
from s3dnerf.data.batch import Frames
from s3dnerf.face.points import (
    EYE_LEFT,
    EYE_RIGHT,
    KEPT_POINTS,
    LID_PAIRS_LEFT,
    LID_PAIRS_RIGHT,
    LIP_PAIRS,
)
from s3dnerf.face.regions import JAW_AND_CHEEKS, point_regions
from s3dnerf.models.s3dnerf.deformation_field import RegionCodes
from s3dnerf.models.s3dnerf.identity import MotionIdentity, Rendering
from s3dnerf.models.s3dnerf.mouth_interior import INNER_LIPS
from s3dnerf.models.s3dnerf.s3dnerf import LIP_LANDMARKS, S3DNeRF
from s3dnerf.ops.constant import constant, select_rows
from s3dnerf.ops.image import downsample
from s3dnerf.rendering.rays import project_points
from s3dnerf.training.config import LossWeights

REGION_OF_LANDMARK = torch.from_numpy(point_regions()[KEPT_POINTS].copy())
MOVED_LANDMARKS = (REGION_OF_LANDMARK <= JAW_AND_CHEEKS).nonzero()[:, 0]
"""Rows of the kept landmarks that move with speech: lips, jaw and cheeks."""
EYE_LANDMARKS = torch.from_numpy(KEPT_POINTS.searchsorted([*EYE_LEFT, *EYE_RIGHT]))
"""Rows of the kept landmarks that lie on the lids."""
LIP_SIDES, LID_SIDES = (
    [torch.from_numpy(KEPT_POINTS.searchsorted(side)) for side in zip(*pairs, strict=True)]
    for pairs in (LIP_PAIRS, LID_PAIRS_LEFT + LID_PAIRS_RIGHT)
)
"""Rows of the upper and lower points that meet when the lips or lids close."""


SMALLEST_MISS = 1e-3
"""Distance in image units (an eighth of a pixel at 256 pixels) at which the flow loss is smoothed."""


LOSS_GROUPS = {
    "image": {
        "pixel": 1.0,  # mean absolute difference
        "lips": 2.0,  # the same within the box around the lips
        "mouth": 0.5,  # the same between open lips, in the frame and for the foveated rays
        "eyes": 2.0,  # the same within the box around the eyes
        "structure": 0.2,  # one minus SSIM
        "gradient": 0.5,  # difference of image gradients at three scales
        "texture": 1.5,  # difference of the amount of local detail; without it, uncertain regions are blurred
        "coarse": 0.3,  # mean absolute difference of the volume-rendered image
        "fine": 1.0,  # the same for the foveated rays, within the boxes around lips and eyes
        "warped": 0.3,  # mean absolute difference of the warped source
        # Distance of the rendered flow to the optical flow, weighted by its confidence. Pixel losses alone give a
        # useful gradient only if structures are displaced by less than their own size.
        "flow": 12.0,
    },
    "perceptual": {
        "perceptual": 0.2,  # features of the face tracker's network
        "seen": 0.3,  # landmarks of face, mouth and lids that it detects
        "seen_gap": 0.3,  # gaps between lips and between lids that it detects
    },
    "sync": {"sync": 0.1},
    "adversarial": {"adversarial": 0.1, "matching": 1.0},
    "landmarks": {
        "deform": 0.001,  # mean squared size of the deformation
        "landmarks": 16.0,  # distance of deformed landmarks to those of the source, head units
        "gap": 16.0,  # the same for the gap between the lips
        "lids": 9.0,  # the same for lids and the gaps between them, with extra weight if the eyes differ
        "regions": 0.02,  # cross-entropy of the regions, in head space and in the source
    },
    # The heads of the clips seldom turn far from the source, so images say little about the surface or about how it
    # looks from the side. Landmarks are known from any side.
    "views": {
        "depth": 0.4,  # distance of the rendered depth to that of landmarks, head units
        "places": 0.8,  # distance between where the landmarks of a view are rendered from and those of the source
    },
    "speech": {
        "motion": 10.0,  # distance of lips and jaw decoded from motion codes of the tracked face, head units
        "speech": 10.0,  # the same for the motion codes of speech
        "correlation": 0.2,  # one minus the correlation of the lip opening over a sequence
        "gain": 0.05,  # difference of the logarithms of the standard deviations of the lip opening
        "silence": 4.0,  # opening or overlap of the lips in silence, head units
        "distill": 0.5,  # distance of motion codes from speech to those of the encoder for the same motion
    },
}
"""Ratios of the losses within each group of ``LossWeights``."""


def image_reconstruction_losses(rendering: Rendering, frames: Frames) -> dict[str, Tensor]:
    """Compare rendered frames with targets."""
    target, image = frames.image, rendering.image
    assert target is not None, "frames have images in the image stage"
    error = (image - target).abs()
    lips, eyes = (box_mask(frames, rows, target.shape[-1]) for rows in (LIP_LANDMARKS, EYE_LANDMARKS))
    small, middle = (downsample(target, target.shape[-1] // x.shape[-1]) for x in (rendering.coarse, rendering.fine))
    watched = downsample(torch.maximum(lips, eyes), 2)
    inside = mouth_mask(frames, middle.shape[-1])
    beside = downsample(error, 2) + (rendering.fine - middle).abs()
    return {
        "pixel": error.mean(),
        "lips": (error * lips).sum() / (3.0 * lips.sum() + 1.0),
        "mouth": (beside * inside).sum() / (3.0 * inside.sum() + 30.0),
        "eyes": (error * eyes).sum() / (3.0 * eyes.sum() + 1.0),
        "structure": 1.0 - luma_ssim(image, target),
        "gradient": gradient_loss(image, target),
        "texture": texture_loss(image, target),
        "coarse": (rendering.coarse - small).abs().mean(),
        "fine": ((rendering.fine - middle).abs() * watched).sum() / (3.0 * watched.sum() + 1.0),
        "warped": (rendering.warped - target).abs().mean(),
        "flow": flow_loss(rendering.flow, frames),
        "deform": rendering.lattice[..., :3].square().sum(-1).mean(),
    }


def flow_loss(flow: Tensor, frames: Frames) -> Tensor:
    """Return the mean distance of ``flow [B, 2, h, w]`` to the optical flow of frames, weighted by its confidence."""
    assert frames.flow is not None and frames.confidence is not None, "frames have flow in the image stage"
    miss = (flow - frames.flow).square().sum(dim=1, keepdim=True)
    return ((miss + SMALLEST_MISS**2).sqrt() * frames.confidence).sum() / (frames.confidence.sum() + 1.0)


def landmark_losses(model: S3DNeRF, identity: MotionIdentity, codes: RegionCodes, frames: Frames) -> dict[str, Tensor]:
    """Compare deformed landmarks of the frames, and their gaps between lips and lids, with those of the sources."""
    field = model.deformation_field
    arrived = frames.landmarks + field.deform_points(codes, frames.landmarks).offsets
    wanted = identity.landmarks
    miss = (arrived - wanted).abs().sum(-1)
    lips, lids = (
        (measure_gaps(arrived, upper, lower) - measure_gaps(wanted, upper, lower)).abs().sum(-1).mean(-1)
        for upper, lower in (LIP_SIDES, LID_SIDES)
    )
    # Blinks are rare and small, so frames whose eyes differ from the source get a larger weight.
    blink = 1.0 + 8.0 * (frames.eyes - identity.eyes).abs().mean(-1)
    places = field.network.encode_positions(frames.landmarks).region_log_weights.transpose(1, 2).float()
    return {
        "landmarks": miss.mean() + select_rows(miss, LIP_LANDMARKS).mean(),
        "gap": lips.mean(),
        "lids": (blink * (select_rows(miss, EYE_LANDMARKS).mean(-1) + lids)).mean(),
        "regions": F.nll_loss(places, constant(REGION_OF_LANDMARK, places.device).expand(places.shape[0], -1)),
    }


def region_loss(identity: MotionIdentity) -> Tensor:
    """Return the cross-entropy between the attention of the region slots in the source and the landmarks there."""
    places = project_points(identity.landmarks, identity.camera)[..., :2]
    claims = F.grid_sample(identity.regions.attention.float(), places[:, :, None], align_corners=False)[..., 0]
    return F.nll_loss(claims, constant(REGION_OF_LANDMARK, claims.device).expand(claims.shape[0], -1))


def motion_loss(model: S3DNeRF, teacher: Tensor, frames: Frames) -> Tensor:
    """Return the error of the landmarks decoded from the codes of the tracked face, ``teacher [B, R, code]``."""
    return landmark_error(model.motion_decoder(teacher.detach()), frames.displacement)


def landmark_error(placed: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean distance of the landmarks ``[B, P, 3]`` that speech moves, counting lips twice."""
    miss = (placed - wanted).abs().sum(-1)
    return select_rows(miss, MOVED_LANDMARKS).mean() + select_rows(miss, LIP_LANDMARKS).mean()


def speech_losses(model: S3DNeRF, spoken: Tensor, frames: Frames, length: int) -> dict[str, Tensor]:
    """Compare motion from speech with tracked motion, over sequences of ``length`` frames.

    ``spoken [B, R, code]`` are motion codes of speech. The decoder predicts their effect. Its predictions are valid
    only for codes like those of the encoder, so a consistency loss keeps the codes of speech close to these.
    """
    placed = decode_motion_landmarks(model, spoken, frames)
    opening = lip_openings(placed).unflatten(0, (-1, length))
    wanted = lip_openings(frames.landmarks).unflatten(0, (-1, length))
    return {
        "speech": landmark_error(placed, frames.landmarks),
        "correlation": (1.0 - pearson_correlation(opening, wanted)).mean(),
        "gain": ((opening.std(-1) + 2e-3).log() - (wanted.std(-1) + 2e-3).log()).abs().mean(),
        "distill": code_consistency_loss(model, spoken, placed, frames),
    }


def silence_losses(model: S3DNeRF, silent: Tensor, frames: Frames) -> dict[str, Tensor]:
    """Penalize lips that are not closed by the motion codes of silence ``[B, R, code]``, for the people in frames."""
    placed = decode_motion_landmarks(model, silent, frames)
    return {
        "silence": lip_openings(placed).abs().mean(),
        "distill": code_consistency_loss(model, silent, placed, frames),
    }


def code_consistency_loss(model: S3DNeRF, motion: Tensor, placed: Tensor, frames: Frames) -> Tensor:
    """Return the distance of motion codes to the encoder's codes for landmarks ``placed [B, P, 3]``.

    Without it, the codes of speech drift to values that only the decoder interprets as intended, and the deformation
    differs from the decoded motion.
    """
    return code_loss(motion, model.motion_encoder(placed.detach() - compute_mean_face(frames)))


def compute_mean_face(frames: Frames) -> Tensor:
    """Return the mean face ``[B, P, 3]`` of the person in each frame."""
    return frames.landmarks - frames.displacement


def decode_motion_landmarks(model: S3DNeRF, motion: Tensor, frames: Frames) -> Tensor:
    """Move the mean faces of the people in frames by decoded motion codes ``[B, R, code]``. Returns ``[B, P, 3]``.

    The parameters of the decoder are frozen, so that it does not learn to guess motion that the codes do not contain.
    """
    with freeze_parameters(model.motion_decoder):
        return compute_mean_face(frames) + model.motion_decoder(motion).float()


def code_loss(guessed: Tensor, known: Tensor) -> Tensor:
    """Return the distance of motion codes to known ones, which get no gradient."""
    return F.smooth_l1_loss(guessed.float(), known.detach().float())


def make_silence(speech: Tensor, generator: torch.Generator) -> Tensor:
    """Return windows like ``speech [B, samples]`` with only faint noise, 35 to 80 dB below the level of speech."""
    device = generator.device
    decibels = -58.0 - 45.0 * torch.rand(len(speech), 1, generator=generator, device=device)
    noise = torch.randn(speech.shape, generator=generator, device=device)
    return (noise * 10.0 ** (decibels / 20.0)).to(speech)


def lip_openings(landmarks: Tensor) -> Tensor:
    """Return the vertical gap ``[B]`` between the inner lips of ``landmarks [B, P, 3]``, head units."""
    upper, lower = LIP_SIDES
    return measure_gaps(landmarks, upper, lower)[..., 1].mean(-1)


def measure_gaps(landmarks: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """Return the vectors ``[B, N, 3]`` from lower to upper landmarks; ``upper`` and ``lower`` hold their rows."""
    return select_rows(landmarks, upper) - select_rows(landmarks, lower)


def pearson_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation along the last axis. Nearly constant series (under 0.1 mm) are uncorrelated."""
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    return (a * b).mean(-1) / ((a.square().mean(-1) + 1e-6) * (b.square().mean(-1) + 1e-6)).sqrt()


@contextmanager
def freeze_parameters(module: nn.Module) -> Iterator[None]:
    """Disable gradients of the parameters of ``module``; gradients still flow through it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def box_mask(frames: Frames, rows: Tensor, size: int, margin: float = 0.06) -> Tensor:
    """Return ``[B, 1, size, size]``: 1 in the box around some landmarks (``margin`` in head units), 0 elsewhere."""
    places = project_points(select_rows(frames.landmarks, rows), frames.camera)[..., :2]
    reach = margin * frames.camera.scale[:, None]
    low, high = places.amin(1) - reach, places.amax(1) + reach
    centers = (2 * torch.arange(size, device=places.device) + 1) / size - 1
    inside = (centers >= low[..., None]) & (centers <= high[..., None])  # [B, 2, size]
    return (inside[:, 0, None, :] & inside[:, 1, :, None]).unsqueeze(1).float()


def mouth_mask(frames: Frames, size: int) -> Tensor:
    """Return ``[B, 1, size, size]``: 1 between the inner outlines of the lips, 0 elsewhere."""
    outline = project_points(select_rows(frames.landmarks, INNER_LIPS), frames.camera)[..., :2]
    centers = (2 * torch.arange(size, device=outline.device) + 1) / size - 1
    (u, v), (next_u, next_v) = (x[..., None, None].unbind(2) for x in (outline, outline.roll(-1, dims=1)))
    # Even-odd rule: a pixel is inside if the ray to its right crosses the outline an odd number of times.
    rows = centers[:, None]
    crossed = (v > rows) != (next_v > rows)
    level = u + (rows - v) / torch.where(crossed, next_v - v, 1.0) * (next_u - u)
    crossings = (crossed & (centers < level)).sum(dim=1, keepdim=True)
    return (crossings % 2).float()


def gradient_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Return the mean absolute difference of horizontal and vertical gradients at ``scales`` octaves."""
    total = a.new_zeros(())
    for _ in range(scales):
        difference = a - b
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        a, b = downsample(a, 2), downsample(b, 2)
    return total / scales


def texture_loss(a: Tensor, b: Tensor, window: int = 8) -> Tensor:
    """Return the mean absolute difference of the mean absolute luminance gradient in windows half a window apart."""
    details = []
    for luma in (rgb_to_luma(a), rgb_to_luma(b)):
        across, down = luma.diff(dim=-1)[..., 1:, :].abs(), luma.diff(dim=-2)[..., 1:].abs()
        details.append(F.avg_pool2d(torch.cat([across, down], dim=1), window, window // 2))
    return (details[0] - details[1]).abs().mean()


def rgb_to_luma(image: Tensor) -> Tensor:
    """Return the luminance ``[B, 1, H, W]`` of ``[B, 3, H, W]``."""
    return torch.einsum("bchw,c->bhw", image, constant(LUMA_WEIGHTS, image.device, image.dtype)).unsqueeze(1)


def luma_ssim(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Return the mean luminance SSIM (Wang et al., 2004) of ``[B, 3, H, W]`` in [0, 1], in windows two pixels apart."""
    x, y = rgb_to_luma(a), rgb_to_luma(b)
    moments = F.avg_pool2d(torch.cat([x, y, x * x, y * y, x * y], dim=1), window, stride=2)
    mean_x, mean_y, xx, yy, xy = moments.unbind(1)
    variance_x, variance_y = xx - mean_x.square(), yy - mean_y.square()
    covariance = xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (similarity / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))).mean()


def weighted_sum(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Return the sum of all losses, weighted by their group and their ratio within it."""
    ratios = {
        name: getattr(weights, group) * ratio for group, names in LOSS_GROUPS.items() for name, ratio in names.items()
    }
    return torch.stack([ratios[name] * value.float() for name, value in losses.items()]).sum()
