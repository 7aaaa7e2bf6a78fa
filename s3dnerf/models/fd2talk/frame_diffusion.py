"""Stage 2 of FD2Talk: frames from a portrait and motion by latent diffusion.

The paper (arXiv 2408.09384) states that the appearance of the reference image and the predicted motion condition a
latent diffusion UNet. What it leaves open is chosen here: an autoencoder of our own, a UNet of diffusers' blocks that
attends to the latents of the source and sees those of the warped portrait and of the frame before, clean latents as the
target of the prediction, and the start of the diffusion (``FrameDiffusionConfig.start``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.config import check_config
from s3dnerf.face.expression_basis import CHANNEL_COUNT, EXPRESSION_SIZE
from s3dnerf.face.portrait_warp import REGION_COUNT
from s3dnerf.models.fd2talk.frame_autoencoder import FrameAutoencoder
from s3dnerf.models.fd2talk.frame_config import LATENT_STRIDE, FrameDenoiserConfig, FrameDiffusionConfig
from s3dnerf.models.layers import zero_initialize
from s3dnerf.models.pretrained import PretrainedModel, load_model
from s3dnerf.ops.image import downsample, upsample

SHIPPED = Path(__file__).parents[2] / "weights" / "fd2talk_frames"
"""Folder of the model that ships with the package."""
PAINTED_REGIONS = slice(0, 3)
"""Maps of lips, mouth and eyes, which one portrait does not show in all their states."""
TOKEN_STRIDE = 4
"""Latents of the source per token along each axis."""


@dataclass(frozen=True)
class FrameCondition:
    """What the latents of B frames depend on; all latents are standardized."""

    coarse: Tensor
    """``[B, C, h, w]`` latents of the warped portrait, or of a rendering that is refined."""
    source: Tensor
    """``[B, C, h, w]`` latents of the portrait."""
    previous: Tensor
    """``[B, C, h, w]`` latents of the frame before; not used where ``has_previous`` is 0."""
    has_previous: Tensor
    """``[B]`` 1 or 0."""
    regions: Tensor
    """``[B, 5, h, w]`` maps of the regions of the face; not used where ``has_motion`` is 0."""
    motion: Tensor
    """``[B, 34]`` standardized change of the motion coefficients from the portrait; likewise."""
    has_motion: Tensor
    """``[B]`` 1 for a warped portrait, 0 for a rendering, which shows its motion itself."""


class FrameDenoiser(nn.Module):
    """Predicts the clean latents of frames as a change of the coarse latents."""

    def __init__(self, config: FrameDenoiserConfig, channels: int, latent_side: int) -> None:
        super().__init__()
        # diffusers takes seconds to import.
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        token_width = config.widths[0]
        side = latent_side // TOKEN_STRIDE
        self.tokens = nn.Conv2d(channels, token_width, TOKEN_STRIDE, TOKEN_STRIDE)
        self.places = nn.Parameter(0.1 * torch.randn(1, side * side, token_width))
        self.unet = UNet2DConditionModel(
            sample_size=latent_side,
            in_channels=3 * channels + REGION_COUNT + 1,
            out_channels=channels,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            cross_attention_dim=token_width,
            attention_head_dim=config.heads,
            norm_num_groups=config.groups,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=CHANNEL_COUNT + 1,
        )
        zero_initialize(self.unet.conv_out)

    def forward(self, noisy: Tensor, step: Tensor, condition: FrameCondition) -> Tensor:
        """Predict clean latents.

        Args:
            noisy: ``[B, C, h, w]``.
            step: ``[B]`` number of the diffusion step.
            condition: of the B frames.

        Returns:
            ``float32 [B, C, h, w]``.
        """
        has_previous, has_motion = condition.has_previous[:, None], condition.has_motion[:, None]
        flag = has_previous[..., None, None].expand(-1, 1, *noisy.shape[2:])
        maps = (
            noisy,
            condition.coarse,
            condition.previous * has_previous[..., None, None],
            condition.regions * has_motion[..., None, None],
            flag.to(noisy.dtype),
        )
        motion = torch.cat([condition.motion * has_motion, has_motion], dim=1)
        tokens = self.tokens(condition.source).flatten(2).transpose(1, 2) + self.places
        inputs = torch.cat(maps, dim=1).contiguous(memory_format=torch.channels_last)
        change = self.unet(inputs, step, encoder_hidden_states=tokens, class_labels=motion, return_dict=False)[0]
        return condition.coarse + change.float()


class FrameDiffusion(PretrainedModel):
    """The autoencoder, the denoiser and the statistics of their inputs."""

    latent_mean: Tensor
    """``[C, 1, 1]`` of the latents of the training frames, and likewise:"""
    latent_std: Tensor
    motion_std: Tensor
    """``[34]`` root mean square of the change of the coefficients from a source frame."""
    strengths: Tensor
    """``[3]`` fractions, in [0, 1], of the predicted change that are made, see :meth:`decode`."""
    source_expression: Tensor
    """``[25, 24]`` ridge regression of a source's expression, see :meth:`estimate_expression`."""

    def __init__(self, config: FrameDiffusionConfig) -> None:
        """Build the networks."""
        super().__init__()
        check_config(config, "frame diffusion")
        self.config = config
        channels = config.autoencoder.channels
        self.autoencoder = FrameAutoencoder(config.autoencoder)
        self.denoiser = FrameDenoiser(config.denoiser, channels, config.image_size // LATENT_STRIDE)
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1))
        self.register_buffer("motion_std", torch.ones(CHANNEL_COUNT))
        self.register_buffer("strengths", torch.ones(3))
        self.register_buffer("source_expression", torch.zeros(EXPRESSION_SIZE + 1, EXPRESSION_SIZE))

    def encode(self, image: Tensor) -> Tensor:
        """Encode images ``[B, 3, S, S]`` in [0, 1] to standardized latents ``[B, C, S / 8, S / 8]``."""
        return (self.autoencoder.encode(image) - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor, coarse: Tensor, regions: Tensor, has_motion: Tensor) -> Tensor:
        """Decode standardized latents to images, not limited to [0, 1].

        Args:
            latents: ``[B, C, h, w]``.
            coarse: ``[B, 3, 8 h, 8 w]`` in [0, 1], the warped portrait or a rendering.
            regions: ``[B, 5, h, w]`` maps of the regions of the face; zeros for a rendering.
            has_motion: ``[B]`` 1 for a warped portrait, 0 for a rendering.
        """
        shades, painted = self.predict_change(latents, coarse, regions)
        warped, mouth_and_eyes, rendering = self.strengths
        strength = torch.where(has_motion > 0, warped, rendering)[:, None, None, None]
        return coarse + strength * shades + mouth_and_eyes * painted

    def predict_change(self, latents: Tensor, coarse: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted change of coarse images in shades outside of mouth and eyes, and of all in these."""
        image = self.autoencoder.decode(latents * self.latent_std + self.latent_mean, coarse)
        return split_change(image - coarse, regions)

    def forward(self, noisy: Tensor, step: Tensor, condition: FrameCondition) -> Tensor:
        """Predict clean latents, see :class:`FrameDenoiser`."""
        return self.denoiser(noisy, step, condition)

    def standardize_motion(self, motion: Tensor) -> Tensor:
        """Standardize changes of the motion coefficients ``[..., 34]`` from the source frame."""
        return motion / self.motion_std

    def estimate_expression(self, projected: Tensor) -> Tensor:
        """Estimate the expression in a source image: ``[B, 24]`` -> ``[B, 24]`` coefficients.

        The argument are the coefficients of its landmarks minus the canonical face. They mix expression and the shape
        of the face, which one image does not tell apart; the estimate is the part that is expression on average.
        """
        return F.pad(projected, (0, 1), value=1.0) @ self.source_expression


def split_change(change: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Split a change of coarse images ``[B, 3, 8 h, 8 w]`` by maps of the regions of the face ``[B, 5, h, w]``.

    Edges of coarse and real frames are rarely at the same pixel, and a decoder that averages over where they may be
    blurs them. So only mouth and eyes are painted anew.

    Returns:
        Shades of eight pixels and more outside of mouth and eyes, and the whole change at mouth and eyes.
    """
    shades = upsample(downsample(change, LATENT_STRIDE), LATENT_STRIDE)
    painted = F.max_pool2d(regions[:, PAINTED_REGIONS].amax(dim=1, keepdim=True), 3, 1, 1)
    painted = upsample(painted, LATENT_STRIDE)
    return (1.0 - painted) * shades, painted * change


def load_frame_diffusion(folder: str | Path = SHIPPED, device: torch.device | str = "cpu") -> FrameDiffusion:
    """Load a model for inference: in evaluation mode, with frozen parameters.

    ``folder`` may also be a hub id. Raises UserError if it holds no such model.
    """
    model = load_model(FrameDiffusion, FrameDiffusionConfig, folder).to(device)
    return model.eval().requires_grad_(False)
