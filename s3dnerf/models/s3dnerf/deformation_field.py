"""Cross-modal facial deformation field (S3D-NeRF, section 3.3): speech deforms ray samples, region by region.

Once per frame, region tokens of the source attend to speech, which gives each region a *motion code*. Every position of
head space has learned weights for the regions. The codes, mixed by these weights, condition a small U-shaped network
that returns the offset from the frame to the source. It also returns *ambient* coordinates (Park et al., 2021). They
give the radiance field information that an offset cannot carry: whether a point between the lips shows teeth or skin.

Two settings select the ablations of the paper: without regions, and without attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.constraints import PositiveInt, Width
from s3dnerf.encoding.hash_grid import HashGrid, HashGridConfig
from s3dnerf.models.layers import make_mlp, zero_initialize
from s3dnerf.models.s3dnerf.lattice import Lattice
from s3dnerf.models.s3dnerf.region_attention import RegionSlotAttention, RegionTokens
from s3dnerf.ops.deformation import deform, run_network
from s3dnerf.ops.stretch import add_stretch
from s3dnerf.rendering.body_motion import weigh_body
from s3dnerf.structures import Camera

MAX_SPEECH_STEPS = 64
"""Maximum number of speech tokens per window."""
ATTENTION_HEADS = 4
AMBIENT_COORDINATES = 4
CONCATENATED_STEPS = 12
"""Time steps of the concatenated speech, 40 ms each for a window of 480 ms."""


LatticePoints = Annotated[PositiveInt, Field(ge=2, le=512)]


@dataclass
class DeformationConfig:
    """Sizes of the deformation field, and its ablation variants."""

    scope: Literal["regions", "whole_face", "nothing"] = "regions"
    """Part of the face that a motion code moves: its region, the whole face (by the sum of all codes), or nothing."""
    fusion: Literal["attention", "concatenation"] = "attention"
    """Fusion of region tokens and speech: by cross-attention, or by concatenation and an MLP."""
    token_width: Annotated[Width, Field(ge=2)] = 64
    """Width of a region token."""
    code_width: Width = 24
    """Width of a region's motion code and of its identity code."""
    hidden: Annotated[Width, Field(ge=2)] = 64
    """Width of the network that maps codes to offsets."""
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Hash grid that encodes positions of head space."""
    lattice_size: tuple[LatticePoints, LatticePoints, LatticePoints] = (44, 96, 6)
    """Points along x, y and z of the lattice on which the field is evaluated once per frame."""
    body_motion: bool = True
    """Whether shoulders follow the neck before the network deforms anything, see ``s3dnerf.rendering.body_motion``. The
    network of models of earlier versions learned all of their motion."""

    @model_validator(mode="after")
    def check_heads(self) -> DeformationConfig:
        """Check that the attention heads divide a token evenly."""
        if self.token_width % ATTENTION_HEADS:
            raise ValueError(
                f"token_width ({self.token_width}) should be a multiple of {ATTENTION_HEADS}, the number of heads"
            )
        return self


@dataclass(frozen=True)
class RegionCodes:
    """Input of the field for a batch of frames."""

    motion: Tensor
    """``[B, R, code_width]``: motion of each region relative to the source."""
    identity: Tensor
    """``[B, R, code_width]``: shape of each region in the source."""
    pose: Tensor
    """``[B, 9]``: poses of the source and of the frame."""
    body: Tensor | None = None
    """``[B, 3, 5]`` offsets of a body that follows the neck, see ``fit_body_offsets``; None without body motion."""
    body_reach: Tensor | None = None
    """``[B, points]`` how far the body moves at each point of the lattice, from 0 to 1; None where it moves freely."""


@dataclass(frozen=True)
class PositionFeatures:
    """Encoded positions, which are the same for all identities."""

    content: Tensor
    """``[..., N, hidden]`` input of the network."""
    region_log_weights: Tensor
    """``[..., N, R]`` log weight of every region."""

    def select(self, rows: Tensor) -> PositionFeatures:
        """Return the features of some of the positions."""
        return PositionFeatures(self.content[..., rows, :], self.region_log_weights[..., rows, :])


@dataclass(frozen=True)
class Deformation:
    """The deformation at some positions."""

    offsets: Tensor
    """``[B, N, 3]`` offsets in head units, from the face in the frame to the face in the source."""
    ambient: Tensor
    """``[B, N, ambient]`` ambient coordinates."""


class RegionQuery(nn.Module):
    """Attention queries of the face regions."""

    def __init__(self, token: int, regions: int) -> None:
        super().__init__()
        self.region = nn.Parameter(torch.randn(regions, token) * 0.5)
        self.normalize = nn.LayerNorm(token)
        # With few training identities, the query must not depend on the identity.
        self.drop_identity = nn.Dropout(0.2)

    def query(self, tokens: Tensor) -> Tensor:
        """Map region tokens ``[B, R, token]`` to queries of the same shape."""
        return self.region + self.drop_identity(self.normalize(tokens))


class SpeechAttention(RegionQuery):
    """Multi-head attention from face regions to speech (F_cm)."""

    def __init__(self, config: DeformationConfig, speech_width: int, regions: int) -> None:
        super().__init__(config.token_width, regions)
        token = config.token_width
        self.time = nn.Parameter(torch.zeros(1, MAX_SPEECH_STEPS, speech_width))
        self.attention = nn.MultiheadAttention(
            token, ATTENTION_HEADS, kdim=speech_width, vdim=speech_width, batch_first=True
        )
        self.to_motion = make_mlp(token, token, config.code_width)

    def forward(self, tokens: Tensor, speech: Tensor) -> Tensor:
        """Region tokens ``[B, R, token]`` and speech ``[B, T, speech_width]`` -> motion codes ``[B, R, code]``."""
        keys = speech + self.time[:, : speech.shape[1]]
        attended, _ = self.attention(self.query(tokens), keys, keys, need_weights=False)
        return self.to_motion(attended + self.region)


class SpeechConcatenation(RegionQuery):
    """The ablation of :class:`SpeechAttention`: one MLP over a region token and the whole speech window.

    It has about as many parameters as the attention.
    """

    def __init__(self, config: DeformationConfig, speech_width: int, regions: int) -> None:
        super().__init__(config.token_width, regions)
        token = config.token_width
        self.reduce = nn.Linear(speech_width, token // 2)
        self.to_motion = make_mlp(token + CONCATENATED_STEPS * (token // 2), token, config.code_width)

    def forward(self, tokens: Tensor, speech: Tensor) -> Tensor:
        """Region tokens ``[B, R, token]`` and speech ``[B, T, speech_width]`` -> motion codes ``[B, R, code]``."""
        steps = F.adaptive_avg_pool1d(self.reduce(speech).transpose(1, 2), CONCATENATED_STEPS).flatten(1)
        window = steps[:, None].expand(-1, tokens.shape[1], -1)
        return self.to_motion(torch.cat([self.query(tokens), window.to(tokens.dtype)], dim=-1))


def make_speech_fusion(config: DeformationConfig, speech_width: int, regions: int) -> RegionQuery:
    """Return the network from region tokens and speech to motion codes that ``config.fusion`` selects."""
    fusion = SpeechAttention if config.fusion == "attention" else SpeechConcatenation
    return fusion(config, speech_width, regions)


class LearnedRegionWeights(nn.Linear):
    """Learned weights of the regions at a position."""

    def forward(self, encoded: Tensor) -> Tensor:
        """``[..., F]`` -> log weights ``[..., R]``."""
        return super().forward(encoded).log_softmax(dim=-1)


class UniformRegionWeights(nn.Module):
    """Equal weights for all regions at every position, so that the sum of all codes moves the whole face.

    The sum is scaled to the magnitude of a single code. A mean would be smaller by the square root of the number of
    regions, so it would learn more slowly at first.
    """

    def __init__(self, regions: int) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, encoded: Tensor) -> Tensor:
        """``[..., F]`` -> log weights ``[..., R]``."""
        return encoded.new_full((*encoded.shape[:-1], self.regions), -0.5 * math.log(self.regions))


class DeformationNetwork(nn.Module):
    """A U-shaped network: positions and region codes -> offsets and ambient coordinates."""

    def __init__(self, config: DeformationConfig, regions: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.grid = HashGrid(config.grid)
        encoded = self.grid.output_features + 3
        self.region_head = (
            UniformRegionWeights(regions) if config.scope == "whole_face" else LearnedRegionWeights(encoded, regions)
        )
        self.from_position = nn.Linear(encoded, hidden)
        self.from_codes = nn.Linear(2 * config.code_width, hidden, bias=False)
        self.from_pose = make_mlp(9, 32, hidden)
        self.down = nn.Linear(hidden, hidden // 2)
        self.up = nn.Linear(hidden // 2, hidden)
        self.output = zero_initialize(nn.Linear(2 * hidden, 3 + AMBIENT_COORDINATES))

    def encode_positions(self, positions: Tensor) -> PositionFeatures:
        """Encode head-space ``positions [..., 3]``; the hash grid spans the cube [-1.5, 1.5]^3."""
        unit = ((positions + 1.5) / 3.0).clamp(0.0, 1.0)
        encoded = torch.cat([16.0 * self.grid(unit), positions], dim=-1)
        return PositionFeatures(self.from_position(encoded), self.region_head(encoded))

    def forward(self, features: PositionFeatures, codes: RegionCodes) -> Deformation:
        """Evaluate ``N`` positions (shared by all frames, or ``B`` sets of them) for ``B`` frames."""
        by_region = self.from_codes(torch.cat([codes.motion, codes.identity], dim=-1))  # [B, R, hidden]
        region_weights, pose = features.region_log_weights.exp(), self.from_pose(codes.pose)
        layers = [(layer.weight, layer.bias) for layer in (self.down, self.up, self.output)]
        # Codes are mixed after the first layer because there are few regions and many positions.
        if region_weights.dim() == 3:
            result = run_network(features.content + region_weights @ by_region + pose[:, None], layers)
        else:
            result = deform(features.content, region_weights, by_region, pose, layers)
        return Deformation(0.25 * result[..., :3], result[..., 3:])


class ZeroDeformation(nn.Module):
    """The ablation without deformation: speech has no effect, and the head moves with its camera only."""

    def __init__(self, config: DeformationConfig, regions: int) -> None:
        super().__init__()
        self.outputs = 3 + AMBIENT_COORDINATES
        self.region_head = UniformRegionWeights(regions)

    def encode_positions(self, positions: Tensor) -> PositionFeatures:
        """Return the positions as their own features, see :meth:`DeformationNetwork.encode_positions`."""
        return PositionFeatures(positions, self.region_head(positions))

    def forward(self, features: PositionFeatures, codes: RegionCodes) -> Deformation:
        """Return zeros, see :meth:`DeformationNetwork.forward`."""
        shape = (len(codes.pose), features.content.shape[-2], self.outputs)
        result = features.content.new_zeros(shape)
        return Deformation(result[..., :3], result[..., 3:])


class CrossModalFacialDeformationField(nn.Module):
    """Region tokens, attention from regions to speech, and the deformation network conditioned on them."""

    body_points: Tensor
    """``[points, 4]`` homogeneous points of the lattice, times the weight of the body there."""

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
        self.to_identity_code = make_mlp(token, token, code)
        self.network = (
            ZeroDeformation(config, regions) if config.scope == "nothing" else DeformationNetwork(config, regions)
        )
        self.lattice = Lattice(config.lattice_size)
        points = self.lattice.points
        weighted = weigh_body(points)[:, None] * torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
        self.register_buffer("body_points", weighted, persistent=False)

    def encode_regions(self, context: Tensor, displacement: Tensor, eyes: Tensor) -> RegionTokens:
        """Aggregate the regions of the source (F_agg).

        Args:
            context: ``[B, C, h, w]`` coarsest appearance features.
            displacement: ``[B, P, 3]`` landmarks of the source minus those of the canonical face, head units.
            eyes: ``[B, 2]`` eye openness in the source.
        """
        gathered = self.gather(context)
        geometry = self.embed_geometry(torch.cat([8.0 * displacement.flatten(1), eyes], dim=1))
        return RegionTokens(gathered.tokens + geometry.view_as(gathered.tokens), gathered.attention)

    def combine_codes(
        self,
        tokens: Tensor,
        motion_delta: Tensor,
        eyes: Tensor,
        pose: Tensor,
        body: Tensor | None = None,
        body_reach: Tensor | None = None,
    ) -> RegionCodes:
        """Combine ``motion_delta [B, R, code]``, ``eyes [B, 2]`` (change of openness), pose and motion of the body."""
        motion = motion_delta + self.embed_eyes(eyes).view_as(motion_delta)
        return RegionCodes(motion, self.to_identity_code(tokens), pose, body, body_reach)

    def deform_points(self, codes: RegionCodes, points: Tensor) -> Deformation:
        """Interpolate the field at head-space ``points [B, N, 3]`` on its lattice, as rendering does.

        Rays only sample the interpolated field. If landmark losses evaluated the network at the points themselves, they
        would train values that no ray samples. The ambient coordinates are those of the network, without the stretch
        that :meth:`deform_lattice` adds. ``points`` get no gradient.
        """
        corners, weights = self.lattice.find_cells(points.detach())
        evaluate = self.evaluate_shared_nodes if points.device.type == "cpu" else self.evaluate_nodes
        nodes = corners.flatten(1)
        around = self.add_body(evaluate(codes, nodes), codes, nodes).unflatten(1, (-1, 8))
        read = torch.einsum("bnk,bnkc->bnc", weights, around)
        return Deformation(read[..., :3], read[..., 3:])

    def evaluate_shared_nodes(self, codes: RegionCodes, nodes: Tensor) -> Tensor:
        """Return the values ``[B, N, 3 + ambient]`` at lattice points ``nodes [B, N]``, for the CPU.

        Landmarks of many frames lie in few cells, so every point is encoded once for all frames. The number of points
        depends on the data: on a GPU, the host would wait for it.
        """
        nodes, places = nodes.unique(return_inverse=True)
        deformation = self.network(self.encode_points(self.lattice.points[nodes]), codes)
        values = torch.cat([deformation.offsets, deformation.ambient], dim=-1)
        return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))

    def evaluate_nodes(self, codes: RegionCodes, nodes: Tensor) -> Tensor:
        """Return the same values as :meth:`evaluate_shared_nodes`, without waiting for a device."""
        deformation = self.network(self.encode_points(self.lattice.points[nodes]), codes)
        return torch.cat([deformation.offsets, deformation.ambient], dim=-1)

    def encode_lattice(self) -> PositionFeatures:
        """Encode the points of the lattice, which are the same for all frames and identities."""
        return self.encode_points(self.lattice.points)

    def encode_points(self, points: Tensor) -> PositionFeatures:
        """Encode head-space ``points [N, 3]`` that all frames share, or ``[B, N, 3]``."""
        features = self.network.encode_positions(points)
        return PositionFeatures(features.content.float(), features.region_log_weights.float())

    def deform_lattice(
        self, codes: RegionCodes, points: PositionFeatures | None = None, needed: Tensor | None = None
    ) -> Tensor:
        """Evaluate the field on the lattice: ``[B, points, 3 + ambient]``.

        Args:
            codes: codes of the frames.
            points: the result of :meth:`encode_lattice`, for callers that evaluate many frames.
            needed: ``bool [points]``, the points whose values will be read; the others are not evaluated. None means
                all of them.

        Where lips or lids part, everything between them deforms to the line where they meet in the source. The stretch
        of the deformation, which marks these places for the radiance field, is added to the first ambient coordinate.
        """
        offsets, ambient = self.evaluate_lattice(codes, points, needed)
        return self.add_body(add_stretch(offsets, ambient, self.lattice.heights, self.lattice.size), codes)

    def add_body(self, values: Tensor, codes: RegionCodes, nodes: Tensor | None = None) -> Tensor:
        """Add the motion of the body to the offsets, the first three of ``values [B, N, 3 + ambient]``.

        ``nodes [B, N]`` are the points of the lattice where they were evaluated; None means all of them.
        """
        if codes.body is None:
            return values
        points, reach = self.body_points, codes.body_reach
        if nodes is not None:
            points, reach = points[nodes], None if reach is None else reach.gather(1, nodes)
        # Where the body moves freely, its flow is added to the offset of the origin.
        still, flow = codes.body[..., :4], codes.body[..., 4:].transpose(1, 2)
        still = still + F.pad(codes.body[..., 4:], (3, 0)) if reach is None else still
        with torch.autocast(values.device.type, enabled=False):
            moved = points @ still.transpose(1, 2)
        if reach is not None:
            moved = moved + (points[..., 3] * reach)[..., None] * flow
        return values + F.pad(moved, (0, values.shape[2] - 3))

    def evaluate_lattice(
        self, codes: RegionCodes, points: PositionFeatures | None, needed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the network's offsets ``[B, points, 3]`` and ambient coordinates on the lattice.

        They are zero at points that neither are ``needed`` nor lie next to one that is.
        """
        if needed is None:
            deformation = self.network(points or self.encode_lattice(), codes)
            return deformation.offsets, deformation.ambient
        # The stretch of a point depends on its neighbors.
        rows = self.lattice.grow_vertically(needed).nonzero()[:, 0]
        features = points.select(rows) if points else self.encode_points(self.lattice.points[rows])
        deformation = self.network(features, codes)
        count = len(needed)
        return scatter_rows(deformation.offsets, rows, count), scatter_rows(deformation.ambient, rows, count)


def scatter_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return ``[B, count, C]`` with ``values [B, N, C]`` at ``rows [N]``, and zeros elsewhere."""
    return values.new_zeros(len(values), count, values.shape[2]).index_copy(1, rows, values)


def encode_poses(source: Camera, target: Camera) -> Tensor:
    """Encode the poses of source and frame as ``[B, 9]``: both rotations, shift and change of scale."""

    def vector(rotation: Tensor) -> Tensor:
        # The antisymmetric part, sin(angle) times the axis, is smooth for all heads that face the camera.
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
