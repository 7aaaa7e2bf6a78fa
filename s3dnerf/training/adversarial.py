"""Adversarial training: discriminators that are trained together with the model (non-saturating loss, R1 penalty).

They see crops at the resolution of the frame: the mouth, upright and at a fixed size, and a random part of the face. In
addition to the adversarial loss, their features for rendered frames are matched to those for targets, which gives a
more stable gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.data.batch import Frames
from s3dnerf.face.face_mesh import FaceWindow, window_to_image
from s3dnerf.models.image_discriminator import ImageDiscriminator, ImageDiscriminatorConfig
from s3dnerf.models.s3dnerf.s3dnerf import LIP_LANDMARKS
from s3dnerf.ops.constant import select_rows
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.rendering.rays import project_points
from s3dnerf.training.config import AdversarialConfig
from s3dnerf.training.losses import freeze_parameters
from s3dnerf.training.perceptual import find_windows
from s3dnerf.training.processes import accumulate

MOUTH_REACH = 0.36
"""Half the side of the mouth crop in head units."""


RAMP = 0.1
"""Fraction of all steps over which the weight of the adversarial losses rises."""
LEARNING_RATE = 2e-3
"""Learning rate of the discriminators."""
R1_GAMMA, R1_INTERVAL = 0.1, 8
"""Weight of the R1 penalty, the squared gradient at real images (Mescheder et al., 2018), and the interval in steps at
which it is applied. Each penalty is multiplied by the interval."""


@dataclass(frozen=True)
class Crops:
    """Crops of rendered frames and of targets, one ``[B, 3, S, S]`` for each discriminator."""

    fake: list[Tensor]
    """Crops of rendered frames."""
    real: list[Tensor]
    """Crops of targets."""


class Adversary(nn.Module):
    """Both discriminators and their optimizer. Once per step, they are updated on the crops of all its batches."""

    def __init__(self, config: AdversarialConfig, image_size: int) -> None:
        """Build discriminators for frames of ``image_size`` pixels. The side of the crops is a quarter of that."""
        super().__init__()
        self.config, self.side = config, image_size // 4
        network = ImageDiscriminatorConfig(self.side, config.widths)
        # Discriminators that never start are not built, so their crops need not be divisible.
        names = ("mouth", "texture") if config.start < 1 else ()
        self.networks = nn.ModuleDict({name: ImageDiscriminator(network) for name in names})
        parameters = list(self.parameters()) or [nn.Parameter(torch.zeros(0))]
        self.optimizer = torch.optim.Adam(parameters, LEARNING_RATE, betas=(0.0, 0.99), foreach=True)
        self.crops: list[Crops] = []
        """Crops of each batch since the last update."""

    def generator_losses(
        self, image: Tensor, frames: Frames, progress: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return adversarial and feature-matching losses of frames ``image [B, 3, S, S]``.

        ``progress`` is the completed fraction of training. Before the start there are no losses.
        """
        if progress < self.config.start or self.config.start == 1:
            return {}
        assert frames.image is not None, "frames have images in the image stage"
        strength = min((progress - self.config.start) / RAMP, 1.0)
        places = torch.rand(len(image), 2, generator=generator, device=generator.device).to(image.device)
        fake, real = self.crop(image, frames, places), self.crop(frames.image, frames, places)
        self.crops.append(Crops([one.detach() for one in fake], real))
        adversarial, matching = [], []
        with freeze_parameters(self):
            for network, one, other in zip(self.networks.values(), fake, real, strict=True):
                output = network(one)
                with torch.no_grad():
                    target = network(other)
                adversarial.append(F.softplus(-output.logits).mean())
                matching += [(a - b).abs().mean() for a, b in zip(output.features, target.features, strict=True)]
        return {
            "adversarial": strength * torch.stack(adversarial).mean(),
            "matching": strength * torch.stack(matching).float().mean(),
        }

    def forward(self, crops: Crops, penalized: bool, autocast: torch.autocast) -> Tensor:
        """Return the loss of the discriminators, with the R1 penalty if ``penalized``."""
        total = torch.zeros((), device=crops.fake[0].device)
        for network, fake, real in zip(self.networks.values(), crops.fake, crops.real, strict=True):
            with autocast:
                total = total + F.softplus(network(fake).logits).mean() + F.softplus(-network(real).logits).mean()
            if penalized:
                total = total + 0.5 * R1_GAMMA * R1_INTERVAL * r1_penalty(network, real)
        return total

    def update(self, step: int, autocast: torch.autocast, objective: nn.Module | None = None) -> None:
        """Run one step of the discriminators' optimizer on the crops since the last update, if there are any.

        Args:
            step: number of the step.
            autocast: precision of the networks.
            objective: this module wrapped by :meth:`Processes.wrap`; None in a single process.
        """
        batches, self.crops = self.crops, []
        if not batches:
            return
        objective = objective or self
        self.optimizer.zero_grad(set_to_none=True)
        for place, crops in enumerate(batches):
            with accumulate(objective, is_last=place == len(batches) - 1):
                loss = objective(crops, step % R1_INTERVAL == 0, autocast)
                (loss / len(batches)).backward()
        self.optimizer.step()

    def crop(self, image: Tensor, frames: Frames, places: Tensor) -> list[Tensor]:
        """Crop the mouth and a patch of the face (at ``places [B, 2]`` in [0, 1]) from ``image``."""
        side = self.side
        return [
            crop_window(image, find_mouth_windows(frames), side),
            crop_patch(image, find_windows(frames), places, side),
        ]


def find_mouth_windows(frames: Frames) -> FaceWindow:
    """Return upright squares around the mouths, of the same size in head units."""
    lips = project_points(select_rows(frames.landmarks, LIP_LANDMARKS), frames.camera)[..., :2]
    rotation = frames.camera.rotation
    roll = torch.atan2(-rotation[:, 1, 0], rotation[:, 0, 0])
    return FaceWindow(lips.mean(1), MOUTH_REACH * frames.camera.scale, roll)


def crop_window(image: Tensor, window: FaceWindow, side: int) -> Tensor:
    """Resample a window of ``image [B, 3, S, S]`` to ``[B, 3, side, side]``."""
    grid = make_pixel_grid(side, side, image.device).expand(len(image), -1, -1, -1)
    return F.grid_sample(image.float(), window_to_image(grid, window), padding_mode="border", align_corners=False)


def crop_patch(image: Tensor, window: FaceWindow, places: Tensor, side: int) -> Tensor:
    """Crop ``[B, 3, side, side]`` without resampling from ``image [B, 3, S, S]``, at ``places`` within the window."""
    size = image.shape[-1]
    center = window.center + window.half_size[:, None] * (2.0 * places - 1.0)
    corner = ((center + 1.0) * size / 2.0 - side / 2.0).round().long().clamp(0, size - side)
    columns, rows = (corner[:, axis, None] + torch.arange(side, device=corner.device) for axis in (0, 1))
    strip = image.gather(2, rows[:, None, :, None].expand(-1, image.shape[1], -1, size))
    return strip.gather(3, columns[:, None, None].expand(-1, image.shape[1], side, -1))


def r1_penalty(network: nn.Module, real: Tensor) -> Tensor:
    """Return the R1 penalty: the mean squared norm of the gradient of the logits at real images."""
    real = real.detach().requires_grad_(True)
    verdict = network(real).logits.sum()
    (gradient,) = torch.autograd.grad(verdict, real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
