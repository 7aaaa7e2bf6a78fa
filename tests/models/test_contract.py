"""What every module of the model promises: batch independence, gradients, bfloat16, and a state that restores it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from s3dnerf.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from s3dnerf.models.image_discriminator import DiscriminatorBlock
from s3dnerf.models.layers import ResidualBlock
from s3dnerf.models.s3dnerf.appearance_encoder import AppearanceEncoderConfig, HierarchicalFacialAppearanceEncoder
from s3dnerf.models.s3dnerf.deformation_field import (
    DeformationConfig,
    DeformationNetwork,
    RegionCodes,
    SpeechAttention,
    SpeechConcatenation,
)
from s3dnerf.models.s3dnerf.eye_interior import EyeInterior
from s3dnerf.models.s3dnerf.motion_encoder import MotionDecoder, MotionEncoder
from s3dnerf.models.s3dnerf.mouth_interior import MouthColors, MouthInterior
from s3dnerf.models.s3dnerf.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.models.s3dnerf.region_attention import RegionSlotAttention
from s3dnerf.models.s3dnerf.super_resolution import SuperResolution, SuperResolutionConfig
from s3dnerf.rendering.opening import Opening
from s3dnerf.structures import Camera

REGIONS, CODE, POINTS = 3, 4, 5
DEFORMATION = DeformationConfig(token_width=8, code_width=CODE, hidden=8, lattice_size=(3, 3, 3))
Run = Callable[..., Tensor]
"""Takes a module and its inputs, and returns one tensor whose first dimension is the batch."""


class Case:
    """A module, the shapes of its inputs (without the batch), how it runs, and the shape of the result."""

    def __init__(self, make: Callable[[], nn.Module], inputs: list[tuple[int, ...]], run: Run, shape: tuple[int, ...]):
        self.make, self.inputs, self.run, self.shape = make, inputs, run, shape

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        module = self.make().eval()
        for parameter in module.parameters():
            # Layers that start at zero would hide what lies before them.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return module

    def draw(self, batch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.rand(batch, *shape, generator=generator) for shape in self.inputs]


def run_plain(module: nn.Module, *inputs: Tensor) -> Tensor:
    return module(*inputs)


def make_camera(batch: int, like: Tensor) -> Camera:
    return Camera(torch.eye(3).expand(batch, 3, 3).to(like), torch.ones(batch).to(like), torch.zeros(batch, 2).to(like))


def run_appearance(module: nn.Module, image: Tensor) -> Tensor:
    appearance = module(image, make_camera(len(image), image))
    parts = [*appearance.planes, appearance.detail, appearance.context]
    return torch.cat([part.flatten(1).to(image.dtype) for part in parts], dim=1)


def run_slots(module: nn.Module, features: Tensor) -> Tensor:
    return module(features).tokens


def run_deformation(module: nn.Module, motion: Tensor, identity: Tensor, pose: Tensor) -> Tensor:
    points = torch.linspace(-0.5, 0.5, 3 * POINTS, dtype=pose.dtype).view(POINTS, 3)
    return module(module.encode_positions(points), RegionCodes(motion, identity, pose)).offsets


def run_radiance(module: nn.Module, features: Tensor, ambient: Tensor, offsets: Tensor, points: Tensor) -> Tensor:
    density, color, others = module(features, ambient, offsets, points)
    return torch.cat([density[..., None], color, others], dim=-1)


def run_mouth(module: nn.Module, pixels: Tensor, sizes: Tensor, colors: Tensor) -> Tensor:
    opening = Opening(*pixels.unbind(-1), *sizes.unbind(-1)[:2])
    source = MouthColors(*(0.5 + colors).unbind(1), sizes[:, 2])
    return module(opening, source, module.types[0])


def run_eyes(module: nn.Module, pixels: Tensor, sizes: Tensor, skin: Tensor) -> Tensor:
    return module(Opening(*pixels.unbind(-1), *sizes.unbind(-1)), 0.5 + skin, module.types[0])


CASES = {
    "appearance encoder": Case(
        lambda: HierarchicalFacialAppearanceEncoder(AppearanceEncoderConfig((4, 4, 4, 4), 2)),
        [(3, 32, 32)],
        run_appearance,
        (6 * (2 * 2 + 4 * 4 + 8 * 8) + 4 * 16 * 16 + 4 * 2 * 2,),
    ),
    "audio encoder": Case(
        lambda: AudioEncoder(AudioEncoderConfig(width=8)),
        [(80, 48)],
        lambda module, features: module.encode(features),
        (12, 8),
    ),
    "region attention": Case(lambda: RegionSlotAttention(4, REGIONS, 8), [(4, 4, 4)], run_slots, (REGIONS, 8)),
    "speech attention": Case(
        lambda: SpeechAttention(DEFORMATION, 6, REGIONS), [(REGIONS, 8), (12, 6)], run_plain, (REGIONS, CODE)
    ),
    "speech concatenation": Case(
        lambda: SpeechConcatenation(DEFORMATION, 6, REGIONS), [(REGIONS, 8), (12, 6)], run_plain, (REGIONS, CODE)
    ),
    "deformation network": Case(
        lambda: DeformationNetwork(DEFORMATION, REGIONS),
        [(REGIONS, CODE), (REGIONS, CODE), (9,)],
        run_deformation,
        (POINTS, 3),
    ),
    "radiance field": Case(
        lambda: RadianceField(RadianceFieldConfig(8, 2), 6, 4),
        [(POINTS, 6), (POINTS, 4), (POINTS, 3), (POINTS, 3)],
        run_radiance,
        (POINTS, 6),
    ),
    "super-resolution": Case(
        lambda: SuperResolution(SuperResolutionConfig((4, 4, 4)), rendered=5, detail=3),
        [(5, 8, 8), (20, 16, 16), (3, 32, 32)],
        run_plain,
        (3, 32, 32),
    ),
    "mouth interior": Case(lambda: MouthInterior(2, 8, 4), [(POINTS, 6), (3,), (3, 3)], run_mouth, (3, POINTS)),
    "eye interior": Case(lambda: EyeInterior(2, 8, 4), [(POINTS, 6), (2,), (3,)], run_eyes, (3, POINTS)),
    "motion encoder": Case(lambda: MotionEncoder(POINTS, REGIONS, CODE), [(POINTS, 3)], run_plain, (REGIONS, CODE)),
    "motion decoder": Case(lambda: MotionDecoder(POINTS, REGIONS, CODE), [(REGIONS, CODE)], run_plain, (POINTS, 3)),
    "residual block": Case(lambda: ResidualBlock(4), [(4, 8, 8)], run_plain, (4, 8, 8)),
    "discriminator block": Case(lambda: DiscriminatorBlock(4, 6), [(4, 8, 8)], run_plain, (6, 4, 4)),
}
pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def test_items_of_a_batch_do_not_affect_each_other(case: Case) -> None:
    module, inputs = case.build(), case.draw(3)
    with torch.no_grad():
        together = case.run(module, *inputs)
        assert together.shape == (3, *case.shape) and together.isfinite().all()
        for index in range(3):
            alone = case.run(module, *(part[index : index + 1] for part in inputs))
            torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-4)


def test_gradients_agree_with_differences_in_float64(case: Case) -> None:
    module = case.build().double()
    inputs = [part.double().requires_grad_() for part in case.draw(2)]
    assert torch.autograd.gradcheck(lambda *parts: case.run(module, *parts), inputs, fast_mode=True, nondet_tol=1e-9)


def test_every_parameter_gets_a_gradient(case: Case) -> None:
    module = case.build().train()
    torch.manual_seed(0)
    case.run(module, *case.draw(2)).square().sum().backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert without <= {"types"}


def test_bfloat16_changes_little(case: Case) -> None:
    module, inputs = case.build(), case.draw(2)
    with torch.no_grad():
        exact = case.run(module, *inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = case.run(module, *inputs).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_the_state_restores_the_module(case: Case) -> None:
    module, inputs = case.build(), case.draw(2)
    other = case.make().eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(case.run(module, *inputs), case.run(other, *inputs))
