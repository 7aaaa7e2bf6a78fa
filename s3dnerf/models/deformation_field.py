"""Cross-modal facial deformation field (S3D-NeRF, section 3.3): speech warps ray samples, region by region.

Once a frame, region tokens of the portrait attend to speech and give each region a *motion code*. Every position of
head space belongs to the regions by learned shares; the codes, mixed by these shares, drive a small U-shaped network
that returns the offset from the frame being rendered back to the portrait's face. Beside the offset it returns
*ambient* coordinates (Park et al., 2021), which tell the radiance field what no offset can: whether a point between
the lips shows teeth or skin.

Two settings take away what the paper's ablation takes away: the regions, and the attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import Coordinate, Length, NonNegativeFloat, PositiveInt, Share, Width
from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig
from s3dnerf.models.layers import make_mlp, zero_initialize
from s3dnerf.models.slot_attention import RegionSlotAttention, RegionTokens
from s3dnerf.ops.deformation import deform, run_network
from s3dnerf.rendering.rays import Camera

MAX_SPEECH_STEPS = 64
"""Longest sequence of speech tokens in a window."""
MOMENTS = 12
"""Moments of a window that a network over concatenated speech sees, 40 ms each in a window of 480 ms."""


LatticePoints = Annotated[PositiveInt, Field(ge=2, le=512)]


@dataclass
class LatticeConfig:
    """The lattice of head space on which the field is evaluated once a frame; between its points it is interpolated."""

    size: tuple[LatticePoints, LatticePoints, LatticePoints] = (44, 96, 6)
    """Points along x, y and z."""
    center: tuple[Coordinate, Coordinate, Coordinate] = (0.0, -0.38, 0.45)
    """Where the lattice is finest, in head units: the mouth."""
    reach: tuple[Length, Length, Length] = (1.4, 1.5, 1.0)
    """How far it reaches from there; positions beyond read its border."""
    focus: tuple[Length, Length, Length] = (0.35, 0.4, 1.0)
    """Distance from the center, in head units, within which the points are about evenly dense."""


@dataclass
class DeformationConfig:
    """Sizes of the deformation field, and its variants that an ablation compares."""

    scope: Literal["regions", "whole_face", "nothing"] = "regions"
    """What a motion code moves: its region of the face, the whole face together with all other codes, or nothing."""
    fusion: Literal["attention", "concatenation"] = "attention"
    """How region tokens take in speech: by cross-attention, or concatenated with it and put through an MLP."""
    token_width: Annotated[Width, Field(ge=2)] = 64
    """Width of a region token."""
    code_width: Width = 24
    """Width of a region's motion code and of its portrait code."""
    heads: Width = 4
    """Heads of the attention from regions to speech."""
    hidden: Annotated[Width, Field(ge=2)] = 64
    """Width of the network that turns codes into offsets."""
    ambient: Width = 4
    """Number of ambient coordinates."""
    smoothing: NonNegativeFloat = 0.0
    """Standard deviation, in frames, of the Gaussian that smooths motion codes in time at render time."""
    articulation: NonNegativeFloat = 1.0
    """How widely, at render time, lips and jaw move about their mean over the speech: rendering narrows openings that
    are thin as a ray, so the codes have to ask for more than they were taught."""
    portrait_trust: Share = 1.0
    """How far, at render time, the expression that a portrait seems to show is believed; the rest is taken for the
    person's own face: whether lips are full or pursed, one picture does not tell."""
    eye_articulation: NonNegativeFloat = 1.0
    """How much further than asked, at render time, eyes open or close: lids are as thin as a ray too."""
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Hash grid that encodes positions of head space."""
    lattice: LatticeConfig = field(default_factory=LatticeConfig)
    """Where the field is evaluated."""

    @model_validator(mode="after")
    def check_heads(self) -> DeformationConfig:
        """Every head takes an equal part of a token."""
        if self.token_width % self.heads:
            raise ValueError(f"token_width ({self.token_width}) should be a multiple of heads ({self.heads})")
        return self


@dataclass(frozen=True)
class RegionCodes:
    """All that the field needs to know about one frame."""

    motion: Tensor
    """``[B, R, code_width]``: what speech and blinks do to each region, beside what it does in the portrait."""
    portrait: Tensor
    """``[B, R, code_width]``: the shape each region has in the portrait."""
    pose: Tensor
    """``[B, 9]``: poses of the portrait and of the frame."""


@dataclass(frozen=True)
class PositionFeatures:
    """What the field knows about positions, whoever's face it is."""

    content: Tensor
    """``[..., N, hidden]`` what each position says to the warp."""
    shares: Tensor
    """``[..., N, R]`` log share of every region."""


@dataclass(frozen=True)
class Deformation:
    """The field at some positions."""

    offsets: Tensor
    """``[B, N, 3]`` head units, from the frame's face to the portrait's."""
    ambient: Tensor
    """``[B, N, ambient]``."""


class Lattice(nn.Module):
    """Points of head space, dense around the mouth, between which the field is read trilinearly."""

    def __init__(self, config: LatticeConfig) -> None:
        super().__init__()
        self.size, self.center, self.focus = config.size, config.center, config.focus
        self.extent = tuple(math.asinh(reach / focus) for reach, focus in zip(config.reach, config.focus, strict=True))
        axes = [torch.linspace(-1.0, 1.0, points) for points in config.size]
        unit = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).permute(2, 1, 0, 3)
        center, focus, extent = (torch.tensor(part) for part in (self.center, self.focus, self.extent))
        points = center + focus * torch.sinh(unit * extent)
        self.register_buffer("points", points.reshape(-1, 3), persistent=False)

    def surround(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Find the cells around head-space ``points [B, N, 3]``, which read the border where they are beyond it.

        Returns the numbers of their corners, ``[B, N, 8]``, and the corners' weights, which sum to one.
        """
        center, focus, extent = (points.new_tensor(part) for part in (self.center, self.focus, self.extent))
        last = points.new_tensor(self.size) - 1.0
        place = 0.5 * last * (torch.asinh((points - center) / focus) / extent + 1.0)
        low = place.floor().clamp(min=0.0).minimum(last - 1.0)
        weight = (place - low).clamp(0.0, 1.0)[..., None, :]
        corner = torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3)
        weights = torch.where(corner.bool(), weight, 1.0 - weight).prod(dim=-1)
        x, y, z = (low.long()[..., None, :] + corner).unbind(-1)
        return (z * self.size[1] + y) * self.size[0] + x, weights

    def measure_parting(self, offsets: Tensor) -> Tensor:
        """Return by how much a warp by ``offsets [B, points, 3]`` shrinks upward distances, ``[B, points, 1]``.

        0 where it moves things as they are, 1 where a whole stretch warps to one height; within [-1, 1.5].
        """
        up = offsets[..., 1].unflatten(1, self.size[::-1])
        heights = self.points[:, 1].view(self.size[::-1])[0, :, 0]
        (slope,) = torch.gradient(up, spacing=(heights,), dim=2)
        return -slope.flatten(1)[..., None].clamp(-1.5, 1.0)


class RegionQuery(nn.Module):
    """What a face region brings when it meets speech."""

    def __init__(self, token: int, regions: int) -> None:
        super().__init__()
        self.region = nn.Parameter(torch.randn(regions, token) * 0.5)
        self.normalize = nn.LayerNorm(token)
        # With few people to learn from, the query must not rely on who is speaking.
        self.drop_identity = nn.Dropout(0.2)

    def query(self, tokens: Tensor) -> Tensor:
        """Region tokens ``[B, R, token]`` -> queries of the same shape."""
        return self.region + self.drop_identity(self.normalize(tokens))


class SpeechAttention(RegionQuery):
    """Multi-head attention from face regions to speech: how much each region has to do with this moment (F_cm)."""

    def __init__(self, config: DeformationConfig, speech_width: int, regions: int) -> None:
        super().__init__(config.token_width, regions)
        token = config.token_width
        self.time = nn.Parameter(torch.zeros(1, MAX_SPEECH_STEPS, speech_width))
        self.attention = nn.MultiheadAttention(
            token, config.heads, kdim=speech_width, vdim=speech_width, batch_first=True
        )
        self.to_motion = make_mlp(token, token, config.code_width)

    def forward(self, tokens: Tensor, speech: Tensor) -> Tensor:
        """Region tokens ``[B, R, token]`` and speech ``[B, T, speech_width]`` -> motion codes ``[B, R, code]``."""
        keys = speech + self.time[:, : speech.shape[1]]
        attended, _ = self.attention(self.query(tokens), keys, keys, need_weights=False)
        return self.to_motion(attended + self.region)


class SpeechConcatenation(RegionQuery):
    """The ablation of :class:`SpeechAttention`: every region reads all of the window, in order, by one MLP.

    It learns about as many parameters as the attention does.
    """

    def __init__(self, config: DeformationConfig, speech_width: int, regions: int) -> None:
        super().__init__(config.token_width, regions)
        token = config.token_width
        self.narrow = nn.Linear(speech_width, token // 2)
        self.to_motion = make_mlp(token + MOMENTS * (token // 2), token, config.code_width)

    def forward(self, tokens: Tensor, speech: Tensor) -> Tensor:
        """Region tokens ``[B, R, token]`` and speech ``[B, T, speech_width]`` -> motion codes ``[B, R, code]``."""
        moments = F.adaptive_avg_pool1d(self.narrow(speech).transpose(1, 2), MOMENTS).flatten(1)
        heard = moments[:, None].expand(-1, tokens.shape[1], -1)
        return self.to_motion(torch.cat([self.query(tokens), heard.to(tokens.dtype)], dim=-1))


def make_speech_fusion(config: DeformationConfig, speech_width: int, regions: int) -> RegionQuery:
    """Return the network from region tokens and speech to motion codes that ``config.fusion`` names."""
    fusion = SpeechAttention if config.fusion == "attention" else SpeechConcatenation
    return fusion(config, speech_width, regions)


class LearnedShares(nn.Linear):
    """How much a position belongs to each region."""

    def forward(self, encoded: Tensor) -> Tensor:
        """``[..., F]`` -> log shares ``[..., R]``."""
        return super().forward(encoded).log_softmax(dim=-1)


class EvenShares(nn.Module):
    """Gives every region the same share of every position: one code, the sum of all, moves the whole face.

    It is scaled to the size of a single one: a plain mean would be smaller by the square root of their number and, for
    that reason alone, learn more slowly at first.
    """

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, encoded: Tensor) -> Tensor:
        """``[..., F]`` -> log shares ``[..., R]``."""
        return encoded.new_full((*encoded.shape[:-1], self.regions), -0.5 * math.log(self.regions))


class RegionWarp(nn.Module):
    """The warp: positions and region codes -> offsets and ambient coordinates, by a U-shaped network."""

    def __init__(self, config: DeformationConfig, regions: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.grid = HashGrid(config.grid)
        encoded = self.grid.output_features + 3
        self.to_shares = EvenShares(regions) if config.scope == "whole_face" else LearnedShares(encoded, regions)
        self.from_position = nn.Linear(encoded, hidden)
        self.from_codes = nn.Linear(2 * config.code_width, hidden, bias=False)
        self.from_pose = make_mlp(9, 32, hidden)
        self.narrow = nn.Linear(hidden, hidden // 2)
        self.widen = nn.Linear(hidden // 2, hidden)
        self.output = zero_initialize(nn.Linear(2 * hidden, 3 + config.ambient))

    def encode_positions(self, positions: Tensor) -> PositionFeatures:
        """Encode head-space ``positions [..., 3]``; the hash grid spans the cube [-1.5, 1.5]^3."""
        unit = ((positions + 1.5) / 3.0).clamp(0.0, 1.0)
        encoded = torch.cat([16.0 * self.grid(unit), positions], dim=-1)
        return PositionFeatures(self.from_position(encoded), self.to_shares(encoded))

    def forward(self, features: PositionFeatures, codes: RegionCodes) -> Deformation:
        """Evaluate ``N`` positions (shared by all frames, or ``B`` sets of them) under ``B`` frames."""
        by_region = self.from_codes(torch.cat([codes.motion, codes.portrait], dim=-1))  # [B, R, hidden]
        shares, pose = features.shares.exp(), self.from_pose(codes.pose)
        layers = [(layer.weight, layer.bias) for layer in (self.narrow, self.widen, self.output)]
        # Mixing after the first layer: regions are few, positions many.
        if shares.dim() == 3:
            result = run_network(features.content + shares @ by_region + pose[:, None], layers)
        else:
            result = deform(features.content, shares, by_region, pose, layers)
        return Deformation(0.25 * result[..., :3], result[..., 3:])


class Stillness(nn.Module):
    """The warp that moves nothing, whatever the codes say: what is left is the motion of the head by the camera."""

    def __init__(self, config: DeformationConfig, regions: int) -> None:
        super().__init__()
        self.outputs = 3 + config.ambient
        self.to_shares = EvenShares(regions)

    def encode_positions(self, positions: Tensor) -> PositionFeatures:
        """As :meth:`RegionWarp.encode_positions`, with no features but the positions."""
        return PositionFeatures(positions, self.to_shares(positions))

    def forward(self, features: PositionFeatures, codes: RegionCodes) -> Deformation:
        """As :meth:`RegionWarp.forward`: zeros."""
        shape = (len(codes.pose), features.content.shape[-2], self.outputs)
        result = features.content.new_zeros(shape)
        return Deformation(result[..., :3], result[..., 3:])


class CrossModalFacialDeformationField(nn.Module):
    """Region tokens, attention from regions to speech, and the warp they drive."""

    def __init__(
        self,
        config: DeformationConfig,
        context_channels: int,
        speech_width: int,
        regions: int,
        landmarks: int,
    ) -> None:
        super().__init__()
        token, code = config.token_width, config.code_width
        self.gather = RegionSlotAttention(context_channels, regions, token)
        self.embed_geometry = make_mlp(3 * landmarks + 2, 128, regions * token)
        self.speech_attention = make_speech_fusion(config, speech_width, regions)
        self.embed_eyes = nn.Linear(2, regions * code, bias=False)
        self.to_portrait = make_mlp(token, token, code)
        self.warp = Stillness(config, regions) if config.scope == "nothing" else RegionWarp(config, regions)
        self.lattice = Lattice(config.lattice)

    def describe_regions(self, context: Tensor, displacement: Tensor, eyes: Tensor) -> RegionTokens:
        """Gather the portrait's regions (F_agg).

        Args:
            context: ``[B, C, h, w]`` coarsest appearance features.
            displacement: ``[B, P, 3]`` the portrait's landmarks minus those of the canonical face, head units.
            eyes: ``[B, 2]`` eye openness in the portrait.
        """
        gathered = self.gather(context)
        geometry = self.embed_geometry(torch.cat([8.0 * displacement.flatten(1), eyes], dim=1))
        return RegionTokens(gathered.tokens + geometry.view_as(gathered.tokens), gathered.attention)

    def combine_codes(self, tokens: Tensor, change: Tensor, eyes: Tensor, pose: Tensor) -> RegionCodes:
        """Join ``change [B, R, code]`` with ``eyes [B, 2]`` (by how much they open) and ``pose [B, 9]``."""
        return RegionCodes(change + self.embed_eyes(eyes).view_as(change), self.to_portrait(tokens), pose)

    def deform_points(self, codes: RegionCodes, points: Tensor) -> Deformation:
        """Read the field at head-space ``points [B, N, 3]`` as rays do: between the points of its lattice.

        A field asked at the points themselves would learn from landmarks what no ray ever sees. The ambient coordinates
        are the field's own, without the parting that :meth:`deform_lattice` adds. No gradients to ``points``.
        """
        corners, weights = self.lattice.surround(points.detach())
        # Landmarks of many frames lie in few cells, whose corners are warped together, for all frames at once.
        nodes, corners = corners.flatten(1).unique(return_inverse=True)
        deformation = self.warp(self.describe_points(self.lattice.points[nodes]), codes)
        values = torch.cat([deformation.offsets, deformation.ambient], dim=-1)
        around = values.gather(1, corners[..., None].expand(-1, -1, values.shape[2])).unflatten(1, (-1, 8))
        read = torch.einsum("bnk,bnkc->bnc", weights, around)
        return Deformation(read[..., :3], read[..., 3:])

    def describe_lattice(self) -> PositionFeatures:
        """Return what the field knows about the points of its lattice: the same for all frames of all people."""
        return self.describe_points(self.lattice.points)

    def describe_points(self, points: Tensor) -> PositionFeatures:
        """Return what the field knows about head-space ``points [N, 3]`` that all frames share."""
        features = self.warp.encode_positions(points)
        return PositionFeatures(features.content.float(), features.shares.float())

    def deform_lattice(self, codes: RegionCodes, points: PositionFeatures | None = None) -> Tensor:
        """Evaluate the field on the lattice: ``[B, points, 3 + ambient]``.

        ``points`` is what :meth:`describe_lattice` gives, for those who evaluate many frames.

        Where lips or lids part, all that is between them warps to the line where they meet in the portrait. That the
        warp does not advance there tells the radiance field of it: it is added to the first ambient coordinate.
        """
        deformation = self.warp(points or self.describe_lattice(), codes)
        parted = self.lattice.measure_parting(deformation.offsets.detach())
        ambient = torch.cat([deformation.ambient[..., :1] + parted, deformation.ambient[..., 1:]], dim=-1)
        return torch.cat([deformation.offsets, ambient], dim=-1)


def describe_poses(source: Camera, target: Camera) -> Tensor:
    """Summarize the poses of portrait and frame as ``[B, 9]``: both rotations, shift and change of scale."""

    def vector(rotation: Tensor) -> Tensor:
        # The antisymmetric part: sin(angle) times the axis, smooth for all heads that still face the camera.
        return torch.stack(
            [
                rotation[:, 2, 1] - rotation[:, 1, 2],
                rotation[:, 0, 2] - rotation[:, 2, 0],
                rotation[:, 1, 0] - rotation[:, 0, 1],
            ],
            dim=-1,
        )

    shift = (target.center - source.center) / source.scale[:, None]
    growth = (target.scale / source.scale).log()[:, None]
    return torch.cat([vector(source.rotation), vector(target.rotation), 2.0 * shift, 4.0 * growth], dim=-1)
