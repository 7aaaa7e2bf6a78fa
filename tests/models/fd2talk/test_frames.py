"""Frame diffusion with a small model: autoencoder, denoiser, sampling, and frames of a portrait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import Tensor

from s3dnerf.config import from_dict, to_dict
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, load_canonical_face
from s3dnerf.face.coefficients import MotionCoefficients
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.face.portrait import Face
from s3dnerf.models.fd2talk.frame_config import FrameAutoencoderConfig, FrameDenoiserConfig, FrameDiffusionConfig
from s3dnerf.models.fd2talk.frame_diffusion import FrameCondition, FrameDiffusion, load_frame_diffusion, split_change
from s3dnerf.models.fd2talk.frame_renderer import FrameRenderer, list_expressions, render_portrait
from s3dnerf.models.fd2talk.frame_sampling import NoiseDiffusion, ResidualShift, make_frame_scheduler

SIDE = 64
SMALL = FrameDiffusionConfig(
    image_size=SIDE,
    autoencoder=FrameAutoencoderConfig(widths=(8, 8), channels=4),
    denoiser=FrameDenoiserConfig(widths=(8, 8, 16), heads=2, groups=4),
)


def make_model(shake: float = 0.1, config: FrameDiffusionConfig = SMALL) -> FrameDiffusion:
    torch.manual_seed(0)
    model = FrameDiffusion(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += shake * torch.randn_like(parameter)
        model.motion_std.uniform_(0.5, 2.0)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(one_thread: None) -> FrameDiffusion:
    return make_model()


def draw_condition(batch: int = 2) -> FrameCondition:
    generator = torch.Generator().manual_seed(1)
    side = SIDE // 8

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    maps = [draw(4, side, side) for _ in range(3)]
    return FrameCondition(*maps, torch.ones(batch), draw(5, side, side), draw(34), torch.ones(batch))


class Perfect:
    """A denoiser that knows the answer."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self.steps: list[int] = []

    def __call__(self, noisy: Tensor, step: Tensor, condition: FrameCondition) -> Tensor:
        self.steps.append(int(step[0]))
        return self.clean


def test_the_autoencoder_keeps_size_and_can_do_without_a_portrait(model: FrameDiffusion) -> None:
    image = torch.rand(2, 3, SIDE, SIDE)
    latents = model.encode(image)
    assert latents.shape == (2, 4, SIDE // 8, SIDE // 8)
    without = model.autoencoder.decode(latents, None)
    black = model.autoencoder.decode(latents, torch.zeros_like(image))
    assert without.shape == image.shape
    assert not torch.equal(without, black)


def test_detail_of_the_warped_portrait_reaches_the_frame() -> None:
    model = make_model(0.0)
    fine = torch.rand(1, 3, SIDE, SIDE)
    latents = torch.zeros(1, 4, SIDE // 8, SIDE // 8)
    pair = [model.autoencoder.decode(latents, image) for image in (fine, fine.flip(-1))]
    flat = (pair[0] - pair[1]).flatten(), (fine - fine.flip(-1)).flatten()
    assert torch.corrcoef(torch.stack(flat))[0, 1] > 0.8


def test_an_untrained_denoiser_returns_the_coarse_latents() -> None:
    torch.manual_seed(0)
    model, condition = FrameDiffusion(SMALL).eval(), draw_condition()
    noisy = torch.randn_like(condition.coarse)
    torch.testing.assert_close(model(noisy, torch.tensor([0, 3]), condition), condition.coarse)


@pytest.mark.parametrize("name", ["coarse", "source", "previous", "regions", "motion"])
def test_every_condition_counts_unless_it_is_hidden(model: FrameDiffusion, name: str) -> None:
    condition = draw_condition()
    noisy, step = torch.randn_like(condition.coarse), torch.zeros(2, dtype=torch.long)
    changed = replace(condition, **{name: getattr(condition, name) + 1.0})
    pair = [model(noisy, step, one) - one.coarse for one in (condition, changed)]
    assert not torch.allclose(*pair, atol=1e-4)
    flags = {"previous": "has_previous", "regions": "has_motion", "motion": "has_motion"}
    if name in flags:
        hidden = [replace(one, **{flags[name]: torch.zeros(2)}) for one in (condition, changed)]
        torch.testing.assert_close(*(model(noisy, step, one) for one in hidden))


@pytest.mark.parametrize("scheduler", [ResidualShift(4, 0.3), NoiseDiffusion(1000, 25)])
def test_a_perfect_denoiser_is_sampled_exactly(scheduler: ResidualShift | NoiseDiffusion) -> None:
    condition = draw_condition()
    clean = torch.randn_like(condition.coarse)
    perfect = Perfect(clean)
    torch.testing.assert_close(
        scheduler.sample(perfect, condition, torch.randn_like(clean)), clean, atol=2e-4, rtol=1e-3
    )
    assert len(perfect.steps) == (4 if isinstance(scheduler, ResidualShift) else 25)
    assert perfect.steps == sorted(perfect.steps, reverse=True)


def test_noise_leads_from_the_frame_to_the_start_of_sampling() -> None:
    condition = draw_condition()
    clean, noise = torch.randn_like(condition.coarse), torch.randn_like(condition.coarse)
    shift = ResidualShift(4, 0.3)
    first, last = (shift.add_noise(clean, condition.coarse, noise, torch.full((2,), step)) for step in (0, 3))
    torch.testing.assert_close(last, condition.coarse + 0.3 * noise, atol=0.01, rtol=0)
    assert (first - clean).abs().mean() < 0.2 * (condition.coarse - clean).abs().mean() + 0.1
    pure = NoiseDiffusion(1000, 25).add_noise(clean, condition.coarse, noise, torch.full((2,), 999))
    torch.testing.assert_close(pure, noise, atol=0.05, rtol=0)


def test_the_settings_choose_the_start() -> None:
    paper = FrameDiffusionConfig(start="noise", diffusion_steps=1000, sampling_steps=25)
    assert isinstance(make_frame_scheduler(paper), NoiseDiffusion)
    assert isinstance(make_frame_scheduler(FrameDiffusionConfig()), ResidualShift)
    assert from_dict(FrameDiffusionConfig, to_dict(paper), "config.json") == paper
    with pytest.raises(UserError, match="sampling_steps"):
        from_dict(FrameDiffusionConfig, {"diffusion_steps": 8}, "own.yaml")
    with pytest.raises(UserError, match="groups"):
        from_dict(FrameDiffusionConfig, {"denoiser": {"groups": 7}}, "own.yaml")


def test_frames_from_noise_are_sampled_too() -> None:
    config = replace(SMALL, start="noise", diffusion_steps=100, sampling_steps=3)
    renderer = FrameRenderer(make_model(config=config), np.full((SIDE, SIDE, 3), 90, np.uint8))
    frame = renderer.refine(np.full((SIDE, SIDE, 3), 60, np.uint8))
    assert frame.shape == (SIDE, SIDE, 3) and frame.dtype == np.uint8


@pytest.mark.parametrize("sees_previous", [True, False])
def test_frames_share_their_noise_and_may_see_the_one_before(sees_previous: bool) -> None:
    model = make_model(config=replace(SMALL, sees_previous=sees_previous))
    rng = np.random.default_rng(0)
    source, a, b = rng.integers(256, size=(3, SIDE, SIDE, 3), dtype=np.uint8)

    def show(*frames: np.ndarray, seed: int = 0) -> list[np.ndarray]:
        renderer = FrameRenderer(model, source, seed)
        return [renderer.refine(frame) for frame in frames]

    first = show(a, a)
    assert np.array_equal(*first) != sees_previous
    assert np.array_equal(first[1], show(b, a)[1]) != sees_previous
    assert all(np.array_equal(*pair) for pair in zip(first, show(a, a), strict=True))
    assert not np.array_equal(first[0], show(a, seed=1)[0])


def test_only_mouth_and_eyes_are_painted_anew(model: FrameDiffusion) -> None:
    torch.manual_seed(1)
    change, regions = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, 5, SIDE // 8, SIDE // 8)
    shades, painted = split_change(change, regions)
    assert not painted.any()
    assert shades.diff(dim=-1).abs().mean() < 0.1 * change.diff(dim=-1).abs().mean()
    regions[:, 0] = 1.0
    shades, painted = split_change(change, regions)
    assert not shades.any() and torch.equal(painted, change)


def test_strengths_scale_the_change() -> None:
    model, coarse = make_model(), torch.rand(2, 3, SIDE, SIDE)
    latents, regions = torch.randn(2, 4, SIDE // 8, SIDE // 8), torch.rand(2, 5, SIDE // 8, SIDE // 8)
    has_motion = torch.tensor([1.0, 0.0])
    shades, painted = model.predict_change(latents, coarse, regions)
    model.strengths.copy_(torch.tensor([0.5, 0.25, 0.0]))
    change = model.decode(latents, coarse, regions, has_motion) - coarse
    torch.testing.assert_close(change[0], 0.5 * shades[0] + 0.25 * painted[0])
    torch.testing.assert_close(change[1], 0.25 * painted[1])


@pytest.fixture(scope="module")
def face() -> Face:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(256, size=(8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pose = HeadPose(np.eye(3, dtype=np.float32)[None], np.full(1, 0.6, np.float32), np.zeros((1, 2), np.float32))
    landmarks = load_canonical_face()[KEPT_POINTS]
    crop = None
    return Face(image, crop, image, landmarks, pose, np.ones(2, np.float32))  # type: ignore[arg-type]


def draw_blocks(amplitude: float) -> Iterator[MotionCoefficients]:
    motion = np.zeros((3, 34), np.float32)
    motion[:, 0] = amplitude * np.arange(3)
    motion[:, 30:32] = 1.0
    yield MotionCoefficients.unflatten(motion)


def show_portrait(face: Face, amplitude: float, eyes: float = 1.0) -> list[np.ndarray]:
    model = make_model(0.0)
    renderer = FrameRenderer(model, face.image)
    matte = np.ones((SIDE, SIDE), np.float32)
    openness = repeat(np.full(2, eyes, np.float32))
    return list(
        render_portrait(renderer, face, matte, list_expressions(draw_blocks(amplitude)), repeat(face.pose), openness)
    )


def test_a_portrait_moves_by_its_expression_and_its_eyes(face: Face) -> None:
    still = show_portrait(face, 0.0)
    assert len(still) == 3 and np.array_equal(*still[:2])
    moved, closed = show_portrait(face, 1.0), show_portrait(face, 0.0, eyes=0.2)
    assert np.array_equal(still[0], moved[0]) and not np.array_equal(still[2], moved[2])
    assert not np.array_equal(still[0], closed[0])


def test_the_expression_of_the_source_is_taken_off(face: Face, model: FrameDiffusion) -> None:
    changed = make_model(0.0)
    changed.source_expression[:24] = torch.eye(24)
    projected = torch.randn(2, 24)
    torch.testing.assert_close(changed.estimate_expression(projected), projected)
    torch.testing.assert_close(model.estimate_expression(projected), torch.zeros(2, 24))


def test_a_model_is_saved_and_loaded(model: FrameDiffusion, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    loaded = load_frame_diffusion(tmp_path)
    assert loaded.config == model.config
    image = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(loaded.encode(image), model.encode(image))
