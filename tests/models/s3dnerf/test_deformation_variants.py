"""Ablation variants of the deformation field: what each one removes, and what it must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from s3dnerf.config import load_config
from s3dnerf.data.batch import Batch
from s3dnerf.errors import UserError
from s3dnerf.models.s3dnerf.deformation_field import (
    CrossModalFacialDeformationField,
    DeformationConfig,
    RegionCodes,
    SpeechAttention,
    SpeechConcatenation,
    make_speech_fusion,
)
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.losses import weighted_sum
from s3dnerf.training.s3dnerf import S3DNeRFTrainer

REGIONS, CODE = 6, 8
STEPS = 12
"""Speech tokens of a window of 480 ms."""
SHAPES = {
    "speech_attention.region": (6, 64),
    "speech_attention.time": (1, 64, 128),
    "speech_attention.normalize.weight": (64,),
    "speech_attention.normalize.bias": (64,),
    "speech_attention.attention.q_proj_weight": (64, 64),
    "speech_attention.attention.k_proj_weight": (64, 128),
    "speech_attention.attention.v_proj_weight": (64, 128),
    "speech_attention.attention.in_proj_bias": (192,),
    "speech_attention.attention.out_proj.weight": (64, 64),
    "speech_attention.attention.out_proj.bias": (64,),
    "speech_attention.to_motion.0.weight": (64, 64),
    "speech_attention.to_motion.0.bias": (64,),
    "speech_attention.to_motion.2.weight": (24, 64),
    "speech_attention.to_motion.2.bias": (24,),
    "network.grid.table": (86520, 2),
    "network.region_head.weight": (6, 19),
    "network.region_head.bias": (6,),
    "network.from_position.weight": (64, 19),
    "network.from_position.bias": (64,),
    "network.from_codes.weight": (64, 48),
    "network.from_pose.0.weight": (32, 9),
    "network.from_pose.0.bias": (32,),
    "network.from_pose.2.weight": (64, 32),
    "network.from_pose.2.bias": (64,),
    "network.down.weight": (32, 64),
    "network.down.bias": (32,),
    "network.up.weight": (64, 32),
    "network.up.bias": (64,),
    "network.output.weight": (7, 128),
    "network.output.bias": (7,),
}
"""Parameters of the deformation field that the variants affect, for the model of base.yaml."""
LEADING_NOWHERE = ("motion_encoder.", "deformation_field.embed_eyes.", "deformation_field.to_identity_code.")
"""Parameters of codes that are unused without a deformation."""


@pytest.fixture
def make_field(
    load_smoke: Callable[..., S3DNeRFConfig],
) -> Callable[..., CrossModalFacialDeformationField]:
    def make(**changes: str) -> CrossModalFacialDeformationField:
        torch.manual_seed(0)
        config = replace(load_smoke().model.deformation, **changes)
        return CrossModalFacialDeformationField(
            config, context_channels=5, speech_width=12, regions=REGIONS, landmarks=9
        ).eval()

    return make


@pytest.fixture
def make_trainer(load_smoke, drawn_clips, tmp_path) -> Callable[..., S3DNeRFTrainer]:
    return lambda *words: S3DNeRFTrainer(load_smoke("--data.root", str(drawn_clips), *words), tmp_path)


def draw_codes(batch: int = 2) -> RegionCodes:
    return RegionCodes(torch.randn(batch, REGIONS, CODE), torch.randn(batch, REGIONS, CODE), torch.randn(batch, 9))


def permute_regions(codes: RegionCodes, order: list[int]) -> RegionCodes:
    return replace(codes, motion=codes.motion[:, order], identity=codes.identity[:, order])


def test_the_method_keeps_the_names_that_stored_weights_have() -> None:
    model = S3DNeRF(load_config(S3DNeRFConfig, "base.yaml").model)
    field = model.deformation_field.state_dict()
    shapes = {name: tuple(value.shape) for name, value in field.items() if name.startswith(("speech_att", "network"))}
    # The order matters: the optimizer of a resumed run identifies parameters by it.
    assert list(shapes.items()) == list(SHAPES.items())


def test_without_deformation_nothing_moves(make_field) -> None:
    field, codes = make_field(scope="nothing"), draw_codes()
    deformation = field.deform_points(codes, torch.randn(2, 30, 3))
    assert deformation.offsets.shape == (2, 30, 3) and deformation.ambient.shape == (2, 30, 4)
    assert not deformation.offsets.any() and not deformation.ambient.any()
    lattice = field.deform_lattice(codes)
    assert lattice.shape == (2, 12 * 12 * 4, 7) and not lattice.any()
    assert not list(field.network.parameters())


def test_without_deformation_speech_is_not_seen_but_the_pose_is(load_smoke, drawn_batch: Batch) -> None:
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke("--model.deformation.scope", "nothing").model).eval()
    with torch.no_grad():
        torch.nn.init.normal_(model.super_resolution.leave.weight, std=0.01)
        identity = model.encode_identity(drawn_batch.images.sources)
        moved = replace(identity.camera, center=identity.camera.center + 0.2)

        def render(windows: torch.Tensor, camera) -> torch.Tensor:
            return model(identity, model.encode_speech(identity, windows), identity.eyes, camera).image

        silence = torch.zeros(2, model.config.audio.samples)
        still, spoken, turned = (
            render(silence, identity.camera),
            render(torch.randn_like(silence), identity.camera),
            render(silence, moved),
        )
    assert torch.equal(still, spoken)
    assert (still - turned).abs().max() > 0.05


def test_on_the_whole_face_it_does_not_matter_whose_code_it_is(make_field) -> None:
    order, points, codes = [3, 0, 5, 1, 4, 2], torch.randn(2, 20, 3), draw_codes()
    changes = {}
    for scope in ("regions", "whole_face"):
        field = make_field(scope=scope)
        torch.nn.init.normal_(field.network.output.weight, std=0.1)
        before = field.deform_points(codes, points).offsets
        after = field.deform_points(permute_regions(codes, order), points).offsets
        changes[scope] = ((before - after).abs().max() / before.abs().max()).item()
        assert field.deform_lattice(codes).any()
    assert changes["whole_face"] < 1e-5
    assert changes["regions"] > 1e-2


def test_on_the_whole_face_all_codes_act_as_one_of_the_size_of_one(make_field) -> None:
    field, points, codes = make_field(scope="whole_face"), torch.randn(2, 20, 3), draw_codes()
    torch.nn.init.normal_(field.network.output.weight, std=0.1)
    shares = field.network.encode_positions(points).region_log_weights.exp()
    # Six independent codes of variance 1, each with a weight of 1 / sqrt(6), sum to a variance of 1.
    torch.testing.assert_close(shares, torch.full((2, 20, REGIONS), 6**-0.5))
    mean = replace(
        codes,
        motion=codes.motion.mean(1, keepdim=True).expand_as(codes.motion),
        identity=codes.identity.mean(1, keepdim=True).expand_as(codes.identity),
    )
    torch.testing.assert_close(field.deform_points(codes, points).offsets, field.deform_points(mean, points).offsets)
    torch.testing.assert_close(field.deform_lattice(codes), field.deform_lattice(mean), atol=1e-5, rtol=1e-4)
    # A code of any region moves points of all regions.
    codes.motion[:, 3] += 3.0
    moved = (field.deform_points(codes, points).offsets - field.deform_points(mean, points).offsets).abs().amax(-1)
    assert moved.min() > 1e-5


def test_concatenated_speech_matters_to_every_region_and_so_does_its_order(make_field) -> None:
    fusion = make_field(fusion="concatenation").speech_attention
    assert isinstance(fusion, SpeechConcatenation)
    tokens, speech = torch.randn(2, REGIONS, 16), torch.randn(2, STEPS, 12)
    motion = fusion(tokens, speech)
    assert motion.shape == (2, REGIONS, CODE)
    other = speech.clone()
    other[1, 4] += 1.0
    change = (fusion(tokens, other) - motion).abs().amax(dim=2)
    assert not change[0].any() and change[1].min() > 1e-3
    assert (fusion(tokens, speech.flip(1)) - motion).abs().amax(dim=2).min() > 1e-3
    assert (fusion(tokens + torch.randn(16), speech) - motion).abs().amax(dim=2).min() > 1e-3


@pytest.mark.parametrize("name", ["base.yaml", "ablation.yaml", "vox.yaml"])
def test_concatenation_learns_as_many_parameters_as_attention(name: str) -> None:
    config = load_config(S3DNeRFConfig, name).model
    counts = {}
    for fusion in ("attention", "concatenation"):
        changed = replace(config.deformation, fusion=fusion)
        module = make_speech_fusion(changed, config.audio.width, REGIONS)
        tokens = torch.randn(2, REGIONS, config.deformation.token_width)
        module(tokens, torch.randn(2, STEPS, config.audio.width)).square().sum().backward()
        # Attention has time embeddings for longer windows than those used. Unused rows get no gradient.
        unread = module.time[:, STEPS:].numel() if isinstance(module, SpeechAttention) else 0
        assert all(parameter.grad.any() for parameter in module.parameters())
        counts[fusion] = sum(parameter.numel() for parameter in module.parameters()) - unread
    assert counts["concatenation"] == pytest.approx(counts["attention"], rel=0.15)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        ((), ()),
        (("--model.deformation.fusion", "concatenation"), ()),
        (("--model.deformation.scope", "whole_face"), ()),
        (("--model.deformation.scope", "nothing"), LEADING_NOWHERE),
    ],
    ids=["full", "concatenation", "whole_face", "without_deformation"],
)
def test_every_parameter_learns(
    words: tuple[str, ...], idle: tuple[str, ...], make_trainer: Callable[..., S3DNeRFTrainer], drawn_batch: Batch
) -> None:
    trainer = make_trainer("--train.motion_steps", "0", *words)
    trainer.motion_interval = 1
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        # Zero-initialized layers block the gradients of the layers before them.
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    trainer.model.train()
    losses = trainer.compute_losses(drawn_batch, torch.Generator().manual_seed(0))
    weighted_sum(losses, trainer.config.losses).backward()
    learned = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    without = {name for name, parameter in learned.items() if parameter.grad is None or not parameter.grad.any()}
    assert without == {name for name in learned if name.startswith(idle or ("-",))}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(learned)


def test_variants_are_named_by_typed_settings(load_smoke) -> None:
    assert (DeformationConfig().scope, DeformationConfig().fusion) == ("regions", "attention")

    with pytest.raises(UserError, match=r"model\.deformation\.scope"):
        load_smoke("--model.deformation.scope", "face")
