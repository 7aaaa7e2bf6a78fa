"""The whole model: outputs of the untrained model, geometry, and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from s3dnerf.data.batch import Batch
from s3dnerf.models.s3dnerf import mouth_interior
from s3dnerf.models.s3dnerf import s3dnerf as module
from s3dnerf.models.s3dnerf.identity import Identity, Rendering
from s3dnerf.models.s3dnerf.mouth_interior import INNER_LIPS, MouthColors
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.s3dnerf.source_expression import SHARED
from s3dnerf.ops.backend import choose_backend
from s3dnerf.ops.image import downsample, make_pixel_grid, warp_image
from s3dnerf.rendering.body_motion import SHARE, weigh_body
from s3dnerf.rendering.opening import Opening
from s3dnerf.rendering.rays import project_points
from s3dnerf.structures import Camera, map_tensors
from s3dnerf.training.config import S3DNeRFConfig

SIDE, RAYS = 64, 16


@pytest.fixture
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    return S3DNeRF(load_smoke().model).eval()


@pytest.fixture
def identity(model: S3DNeRF, drawn_batch: Batch) -> Identity:
    with torch.no_grad():
        return model.encode_identity(drawn_batch.images.sources)


def render(model: S3DNeRF, identity: Identity, camera: Camera, window: Tensor | None = None) -> Rendering:
    windows = torch.zeros(len(camera.scale), model.config.audio.samples) if window is None else window
    with torch.no_grad():
        return model(identity, model.encode_speech(identity, windows), identity.eyes, camera)


def set_density(model: S3DNeRF, level: float) -> None:
    """Make the field uniform: -100 is empty space, 100 is opaque at the first sample."""
    with torch.no_grad():
        model.radiance_field.network[-1].weight[0] = 0.0
        model.radiance_field.network[-1].bias[0] = level


def shift(camera: Camera, u: float, v: float) -> Camera:
    return replace(camera, center=camera.center + torch.tensor([u, v]))


HEAD, BODY = slice(None, RAYS), slice(-2, None)
"""Rows of the images of twice as many pixels that certainly show the head, and below the neck."""


def check_flow(flow: Tensor, rows: slice, u: float, v: float) -> None:
    """Check that some rows flow by (u, v)."""
    part = flow[:, :, rows]
    expected = torch.tensor([u, v]).view(1, 2, 1, 1).expand_as(part)
    torch.testing.assert_close(part, expected, atol=1e-4, rtol=0)


def test_sizes(model: S3DNeRF, identity: Identity) -> None:
    rendering = render(model, identity, identity.camera)
    parts = {**vars(rendering), "alphas": rendering.alpha, "flows": rendering.flow}
    shapes = {name: tuple(value.shape) for name, value in parts.items()}
    assert shapes == {
        "image": (2, 3, SIDE, SIDE),
        "warped": (2, 3, SIDE, SIDE),
        "coarse": (2, 3, RAYS, RAYS),
        "fine": (2, 3, 2 * RAYS, 2 * RAYS),
        "alphas": (2, 1, RAYS, RAYS),
        "flows": (2, 2, 2 * RAYS, 2 * RAYS),
        "weights": (1, 2, 1, 2 * RAYS, 2 * RAYS),
        "lattice": (2, 12 * 12 * 4, 7),
    }
    assert len(rendering.alphas) == len(rendering.flows) == 1


def test_an_untrained_model_returns_the_portrait_unmoved(model: S3DNeRF, identity: Identity) -> None:
    rendering = render(model, identity, identity.camera, torch.randn(2, model.config.audio.samples))
    assert not rendering.lattice.any()
    assert rendering.flow.abs().max() < 1e-5
    torch.testing.assert_close(rendering.warped, identity.image, atol=1e-4, rtol=0)
    torch.testing.assert_close(rendering.image, identity.image, atol=1e-4, rtol=0)


def test_mixed_precision_moves_nothing(model: S3DNeRF, identity: Identity) -> None:
    # Geometry in bfloat16 would shift the source by up to half a pixel, differently for each ray and frame.
    with torch.autocast("cpu", torch.bfloat16):
        rendering = render(model, identity, identity.camera)
    assert rendering.flow.abs().max() < 1e-5
    torch.testing.assert_close(rendering.image, identity.image, atol=1e-4, rtol=0)


def test_an_opaque_head_moves_with_the_camera(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, 100.0)
    # Eight of 64 pixels to the right and four down.
    rendering = render(model, identity, shift(identity.camera, 0.25, 0.125))
    torch.testing.assert_close(rendering.alpha, torch.ones(2, 1, RAYS, RAYS), atol=1e-4, rtol=0)
    check_flow(rendering.flow, HEAD, -0.25, -0.125)
    assert (rendering.flow[:, :, BODY].abs() < torch.tensor([0.249, 0.1249]).view(1, 2, 1, 1)).all()
    source = identity.image
    head = SIDE // 2
    torch.testing.assert_close(rendering.warped[..., 4:head, 8:], source[..., : head - 4, :-8], atol=1e-3, rtol=0)


def test_a_head_twice_as_large_reads_half_as_far_out(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, 100.0)
    camera = identity.camera
    flow = render(model, identity, replace(camera, scale=2 * camera.scale)).flow
    places = (2 * torch.arange(2 * RAYS) + 1) / (2 * RAYS) - 1
    source_u = (places + flow[0, 0, 5])[1:-1]  # beyond the outermost rays there is nothing to interpolate with
    expected = camera.center[0, 0] + (places - camera.center[0, 0]) / 2
    torch.testing.assert_close(source_u, expected[1:-1], atol=1e-4, rtol=0)


def test_empty_space_shows_the_still_background(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, -100.0)
    # The teeth of a smile would be put in.
    wide = replace(identity.mouth_colors, opening=torch.full((2,), 0.3))
    nobody = replace(identity, person=torch.zeros_like(identity.person), mouth_colors=wide)
    rendering = render(model, nobody, shift(identity.camera, 0.3, 0.1))
    assert rendering.alpha.abs().max() < 1e-6
    torch.testing.assert_close(rendering.coarse, downsample(identity.image, 4))
    torch.testing.assert_close(rendering.image, identity.image, atol=1e-4, rtol=0)


def test_hair_and_shoulders_that_rays_miss_move_too(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, -100.0)
    covered = replace(identity, person=torch.ones_like(identity.person))
    rendering = render(model, covered, shift(identity.camera, 0.25, 0.125))
    torch.testing.assert_close(rendering.alpha, torch.ones(2, 1, RAYS, RAYS))
    check_flow(rendering.flow, HEAD, -0.25, -0.125)
    check_flow(rendering.flow, BODY, -0.25 * SHARE[0], -0.125 * SHARE[1])
    small, half = downsample(identity.image, 4), SIDE // 2
    torch.testing.assert_close(rendering.coarse[..., 1:8, 2:], small[..., :7, :-2], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        rendering.warped[..., 4:half, 8:], identity.image[..., : half - 4, :-8], atol=1e-4, rtol=0
    )


def test_an_anchored_body_stays_at_the_border(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, -100.0)
    covered = model.anchor_body(replace(identity, person=torch.ones_like(identity.person)))
    flow = render(model, covered, shift(identity.camera, 0.25, 0.125)).flow
    # Coverage is read where the body would come from, so a little remains.
    assert flow[:, :, -1].abs().max() < 2e-3 and flow[:, :, :, 0].abs().max() < 2e-3
    check_flow(flow[..., 12:-14], slice(10, RAYS), -0.25, -0.125)
    codes = model.drive(covered, covered.source_motion, covered.eyes, shift(identity.camera, 0.25, 0.125))
    places = project_points(model.deformation_field.lattice.points.expand(2, -1, -1), identity.camera)
    low = (places[..., 1] > 0.9) & (weigh_body(model.deformation_field.lattice.points) == 1.0)
    moved = model.deformation_field.deform_lattice(codes)[..., :3]
    # A point that the head carries to the right and down is read as much farther there: it stays.
    expected = torch.tensor([0.25, -0.125, 0.0]) / identity.camera.scale[:, None]
    back = torch.einsum("bij,bj->bi", identity.camera.rotation.transpose(1, 2), expected)
    assert low.any()
    torch.testing.assert_close(moved[low], back[low.nonzero()[:, 0]], atol=1e-5, rtol=1e-4)


def test_motion_needs_no_matte(model: S3DNeRF, drawn_batch: Batch) -> None:
    with torch.no_grad():
        motion = model.encode_motion_identity(replace(drawn_batch.images.sources, matte=None))
        whole = model.encode_identity(drawn_batch.images.sources).select_motion()
    assert torch.equal(motion.source_motion, whole.source_motion)
    assert torch.equal(motion.regions.tokens, whole.regions.tokens)


def test_only_the_change_from_the_portrait_drives(model: S3DNeRF, identity: Identity) -> None:
    motion = torch.randn(2, 6, 8)
    still = model.drive(identity, identity.source_motion, identity.eyes, identity.camera)
    assert not still.motion.any() and not still.pose[:, 6:].any()
    guessed = model.drive(identity, motion, identity.eyes, identity.camera).motion
    known = model.drive(identity, motion, identity.eyes, identity.camera, source_motion=0.5 * motion).motion
    torch.testing.assert_close(guessed, motion - identity.source_motion)
    torch.testing.assert_close(known, 0.5 * motion)
    winked = model.drive(
        identity, identity.source_motion, identity.eyes - torch.tensor([0.5, 0.0]), identity.camera
    ).motion
    expected = -0.5 * model.deformation_field.embed_eyes.weight[:, 0].view(6, 8)
    torch.testing.assert_close(winked, expected.expand(2, 6, 8))


def test_jittered_samples_differ_and_repeat_with_their_seed(model: S3DNeRF, identity: Identity) -> None:
    camera = identity.camera
    still = identity, torch.zeros(2, 6, 8), identity.eyes, camera
    with torch.no_grad():
        seeds = [model(*still, generator=torch.Generator().manual_seed(s)).coarse for s in (1, 1, 2)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


def test_repeated_identities_stand_in_a_row(model: S3DNeRF, identity: Identity) -> None:
    repeated = identity.repeat(3)
    assert repeated.image.shape == (6, 3, SIDE, SIDE)
    assert [len(planes) for planes in repeated.appearance.planes] == [6, 6, 6]
    for index in range(6):
        assert torch.equal(repeated.camera.rotation[index], identity.camera.rotation[index // 3])
        assert torch.equal(repeated.regions.tokens[index], identity.regions.tokens[index // 3])
    camera = identity.camera.repeat(3)
    together = render(model, repeated, camera).coarse
    torch.testing.assert_close(together[4], render(model, identity, identity.camera).coarse[1], atol=1e-5, rtol=0)


def test_a_motion_identity_moves_as_the_whole_identity(model: S3DNeRF, identity: Identity) -> None:
    bare = identity.select_motion()
    motion, eyes = torch.randn(6, 6, 8), torch.rand(6, 2)
    camera = identity.camera.repeat(3)
    codes, others = (model.drive(one.repeat(3), motion, eyes, camera) for one in (bare, identity))
    given = {name: value for name, value in vars(codes).items() if value is not None}
    assert len(given) == 4 and all(torch.equal(value, getattr(others, name)) for name, value in given.items())


def test_views_of_one_identity_render_as_copies_of_it_do(model: S3DNeRF, identity: Identity) -> None:
    one = map_tensors(identity, lambda x: x[:1])
    views, copies = one.expand(3), one.repeat(3)
    assert views.image.data_ptr() == one.image.data_ptr()
    camera = shift(one.camera.repeat(3), 0.1, 0.0)
    for name, value in vars(render(model, views, camera)).items():
        torch.testing.assert_close(value, getattr(render(model, copies, camera), name), msg=name)


def test_what_lies_behind_an_opaque_sample_is_left_out_in_use_only(model: S3DNeRF, identity: Identity) -> None:
    set_density(model, 8.0)
    with torch.no_grad():
        still = identity, torch.zeros(2, 6, 8), identity.eyes, identity.camera
        used, trained = (mode(*still) for mode in (model.eval(), model.train()))
    difference = (used.coarse - trained.coarse).abs().max()
    assert 0 <= difference < 5e-3 and (used.alpha - trained.alpha).abs().max() < 2e-3


def draw_lips(height: float) -> Tensor:
    """Return the inner edge of lips that are ``height`` head units apart, with a straight upper lip: ``[2, 20, 3]``."""
    angle = torch.arange(20) * (torch.pi / 10)
    down = -height * angle.sin().clamp(min=0.0) - 0.42
    return torch.stack([-0.3 * angle.cos(), down, torch.full_like(angle, 0.5)], -1).expand(2, -1, -1)


def draw_source(identity: Identity, opening: float) -> Identity:
    """Return the identity with lips that are ``opening`` head units apart."""
    landmarks = identity.landmarks.clone()
    landmarks[:, INNER_LIPS] = draw_lips(opening)
    colors = replace(identity.mouth_colors, opening=torch.full((2,), opening))
    return replace(identity, landmarks=landmarks, mouth_colors=colors)


PAINT = 9.0
"""Gray level of the generated interior, which no source has."""


def open_lips(
    model: S3DNeRF,
    identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
    source: float,
    frame: float,
    camera: Camera | None = None,
) -> Tensor:
    """Composite the interior into a gray frame, for given lip openings in the source and in the frame (head units).

    The head pose is that of the source unless ``camera`` is given.
    """

    def paint(opening: Opening, colors: MouthColors) -> Tensor:
        return torch.full((2, 3, opening.across.shape[1]), PAINT)

    monkeypatch.setattr(model.mouth_interior, "forward", paint)
    # These lips part more widely than real ones.
    monkeypatch.setattr(module, "MOUTH_FRACTION", 1.0)
    gray = torch.full_like(identity.image, 0.5)
    with torch.no_grad():
        lips = draw_lips(frame)
        return model.composite_mouth_interior(gray, draw_source(identity, source), lips, camera or identity.camera)


def mark_band(identity: Identity, low: float, high: float, reach: float = 0.1) -> Tensor:
    """Mark the pixels between two heights below the upper lip, around the middle of the mouth (head units)."""
    corners = torch.tensor([[-reach, -0.42 - low, 0.5], [reach, -0.42 - high, 0.5]]).expand(2, -1, -1)
    (left, top), (right, bottom) = project_points(corners, identity.camera)[0, :, :2].tolist()
    u, v = make_pixel_grid(SIDE, SIDE).unbind(-1)
    return (u > left) & (u < right) & (v > top) & (v < bottom)


def test_lips_that_part_keep_the_teeth_that_the_portrait_shows_and_the_rest_is_painted(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_lips(model, identity, monkeypatch, source=0.2, frame=0.31)
    teeth, below, around = (
        mark_band(identity, *band) for band in ((0.035, 0.075, 0.06), (0.19, 0.26, 0.06), (-0.1, 0.4, 0.4))
    )
    assert teeth.any() and below.any()
    torch.testing.assert_close(opened[..., teeth], identity.image[..., teeth], atol=1e-3, rtol=0)
    assert opened[..., below].max() > 4.0
    assert (opened[..., ~around] == 0.5).all()


def test_lips_that_are_closed_in_the_portrait_open_upon_paint_alone(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_lips(model, identity, monkeypatch, source=0.0, frame=0.3)
    assert opened[..., mark_band(identity, 0.07, 0.15)].min() > 8.0


@pytest.mark.parametrize("frame", [0.0, 0.2, 0.3])
def test_a_mouth_that_is_no_wider_open_than_in_the_portrait_is_not_painted(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, frame: float
) -> None:
    assert (open_lips(model, identity, monkeypatch, source=0.3, frame=frame) == 0.5).all()


@pytest.mark.parametrize("frame", [0.12, 0.15, 0.2, 0.3])
def test_lips_that_close_over_a_smile_leave_its_teeth_as_they_are(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, frame: float
) -> None:
    # These lips are farther apart than those of smiles.
    monkeypatch.setattr(mouth_interior, "SMILE", (0.5, 0.6))
    closing = open_lips(model, identity, monkeypatch, source=0.3, frame=frame)
    teeth, lip = mark_band(identity, 0.035, 0.075, 0.06), mark_band(identity, frame + 0.04, frame + 0.12, 0.06)
    assert teeth.any() and lip.any()
    torch.testing.assert_close(closing[..., teeth], identity.image[..., teeth], atol=1e-3, rtol=0)
    assert (closing[..., lip] == 0.5).all()
    # Nothing is painted, and the source has no colors above 1.
    assert closing.max() <= 1.01


@pytest.mark.parametrize("height", [0.01, 0.1, 0.4])
def test_cells_that_are_not_covered_do_not_matter(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, height: float
) -> None:
    source, lips = draw_source(identity, 0.0), draw_lips(height)
    image = torch.rand_like(identity.image)
    with torch.no_grad():
        some = model.composite_mouth_interior(image, source, lips, identity.camera)
        monkeypatch.setattr(model, "count_covered", lambda coverage: coverage.shape[1])
        every = model.composite_mouth_interior(image, source, lips, identity.camera)
    torch.testing.assert_close(some, every, atol=1e-6, rtol=0)
    assert (every - image).abs().max() > 0.01


@pytest.mark.parametrize("degrees", [-40.0, 0.0, 40.0])
def test_a_mouth_that_is_wider_open_is_painted_however_far_the_head_nods(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, degrees: float
) -> None:
    camera = identity.camera
    nod = torch.from_numpy(Rotation.from_euler("x", degrees, degrees=True).as_matrix()).float()
    nodding = replace(camera, rotation=camera.rotation @ nod)
    opened = open_lips(model, identity, monkeypatch, source=0.3, frame=0.4, camera=nodding)
    assert opened.amax(dim=(1, 2, 3)).min() > 4.0


def test_edges_of_the_mouth_are_where_rays_see_the_lips(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.nn.init.normal_(model.deformation_field.network.output.weight, std=0.03)
    found = []
    search = module.locate_edges
    monkeypatch.setattr(module, "locate_edges", lambda *given: found.append(search(*given)) or found[-1])
    motion = torch.randn(2, 6, 8)
    with torch.no_grad():
        model(identity, motion, identity.eyes, identity.camera)
        codes = model.drive(identity, motion, identity.eyes, identity.camera)
        arrived = found[0] + model.deformation_field.deform_points(codes, found[0]).offsets
    lips = identity.landmarks[:, INNER_LIPS]
    torch.testing.assert_close(arrived, lips, atol=1e-3, rtol=0)
    assert (found[0] - lips).abs().max() > 1e-2


@pytest.mark.parametrize("is_closed", [False, True])
def test_points_of_the_lattice_that_no_ray_reads_are_left_out(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    torch.nn.init.normal_(model.deformation_field.network.output.weight, std=0.03)
    if choose_backend("mark_cells", "cpu") == "pytorch":
        pytest.skip("only a kernel marks the points that are read")
    closed = torch.ones(2, 2) if is_closed else None
    identity, motion = replace(identity, closed_eyes=closed), torch.randn(2, 6, 8)
    camera = shift(identity.camera, 0.1, -0.1)
    with torch.no_grad():
        part = model(identity, motion, identity.eyes + 0.3, camera)
        monkeypatch.setattr(S3DNeRF, "mark_needed_points", lambda *_: None)
        whole = model(identity, motion, identity.eyes + 0.3, camera)
    left_out = (part.lattice[..., :3] == 0.0).all(dim=(0, 2)).float().mean()
    assert 0.1 < left_out < 0.9
    for name in ("image", "warped", "coarse", "fine", "flow", "alpha"):
        # On AMD the last bit of a matrix product depends on its number of rows.
        torch.testing.assert_close(getattr(part, name), getattr(whole, name), atol=1e-6, rtol=0)


def test_the_points_that_are_left_out_have_no_gradients(
    model: S3DNeRF, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.nn.init.normal_(model.deformation_field.network.output.weight, std=0.03)
    motion, learned = torch.randn(2, 6, 8), list(model.deformation_field.network.parameters())

    def find_gradients() -> tuple[Tensor | None, ...]:
        rendering = model(identity, motion, identity.eyes, identity.camera)
        loss = rendering.image.square().sum() + rendering.flow.square().sum()
        return torch.autograd.grad(loss, learned, allow_unused=True)

    part = find_gradients()
    monkeypatch.setattr(S3DNeRF, "mark_needed_points", lambda *_: None)
    for gradient, expected in zip(part, find_gradients(), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_training_deforms_all_points_of_the_lattice(model: S3DNeRF, identity: Identity) -> None:
    torch.nn.init.normal_(model.deformation_field.network.output.weight, std=0.03)
    rendering = model.train()(identity, torch.randn(2, 6, 8), identity.eyes, identity.camera)
    assert (rendering.lattice[..., :3] != 0.0).any(dim=2).all()


def test_saved_and_loaded_models_are_the_same(
    model: S3DNeRF, identity: Identity, drawn_batch: Batch, tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    loaded = S3DNeRF.from_pretrained(str(tmp_path / "model"))
    assert loaded.config == model.config
    assert not loaded.training
    windows = torch.randn(2, model.config.audio.samples)
    camera = shift(identity.camera, 0.1, 0.0)
    with torch.no_grad():
        before, after = (
            render(one, one.encode_identity(drawn_batch.images.sources), camera, windows) for one in (model, loaded)
        )
    for name in ("image", "warped", "coarse", "fine", "alpha", "flow", "lattice"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    # The file is self-contained: sizes as plain numbers, weights as safetensors.
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["ray_size"] == RAYS
    assert sorted(path.name for path in (tmp_path / "model").glob("*.safetensors")) == ["model.safetensors"]


def test_derived_tables_are_not_in_the_file(model: S3DNeRF) -> None:
    assert [name for name in model.state_dict() if "filters" in name or "lattice" in name] == []


def test_warp_reads_where_the_flow_points() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 0] = 0.5  # one of four pixels to the right
    torch.testing.assert_close(warp_image(image, flow)[0, 0, 1], torch.tensor([5.0, 6.0, 7.0, 7.0]))
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 1] = -0.5
    torch.testing.assert_close(warp_image(image, flow)[0, 0, :, 2], torch.tensor([2.0, 2.0, 6.0, 10.0]))


def test_downsampling_averages_squares() -> None:
    image = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert downsample(image, 2).item() == 4.0


def test_a_portrait_is_believed_as_far_as_it_is_trusted(model: S3DNeRF, identity: Identity) -> None:
    identity = replace(identity, mouth_colors=replace(identity.mouth_colors, opening=torch.full((2,), 0.08)))
    assert model.prepare_identity(identity).source_motion.equal(identity.source_motion)
    with torch.no_grad():
        # The reference is lips at rest: landmarks of the person's own mean face.
        rest = model.motion_encoder(torch.zeros(1, *model.canonical_landmarks.shape))
        for confidence in (0.0, 0.25):
            model.render_config.source_expression_scale = confidence
            expected = rest + confidence * (identity.source_motion - rest)
            torch.testing.assert_close(model.prepare_identity(identity).source_motion, expected)


def test_images_of_one_person_show_each_others_expression(model: S3DNeRF, identity: Identity) -> None:
    first = map_tensors(identity, lambda x: x[:1])
    smile = 0.01 * torch.randn(model.canonical_landmarks.shape, generator=torch.Generator().manual_seed(1))
    second = replace(first, landmarks=first.landmarks + smile)
    model.render_config.source_expression_scale = 0.0
    with torch.no_grad():
        (alone,), (one, two) = model.prepare_images([first]), model.prepare_images([first, second])
        assert alone.source_motion.equal(model.prepare_identity(first).source_motion)
        # Nothing is estimated, so half of the difference is on either side of the face at rest.
        wanted = model.motion_encoder(SHARED * torch.stack([-smile, smile]) / 2)
    torch.testing.assert_close(torch.cat([one.source_motion, two.source_motion]), wanted)


@pytest.mark.parametrize(
    ("opening", "scale"), [(0.0, 0.9), (0.04, 0.575), (0.08, 0.25), (0.1, 0.25), (0.14, 0.625), (0.3, 1.0)]
)
def test_closed_and_wide_open_mouths_are_an_expression(
    model: S3DNeRF, identity: Identity, opening: float, scale: float
) -> None:
    colors = replace(identity.mouth_colors, opening=torch.full((2,), opening))
    model.render_config.source_expression_scale = 0.25
    for enabled, tolerance in ((False, 1e-5), (True, 2e-2)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            rest = model.motion_encoder(torch.zeros(1, *model.canonical_landmarks.shape))
            prepared = model.prepare_identity(replace(identity, mouth_colors=colors)).source_motion
        expected = rest + scale * (identity.source_motion - rest)
        torch.testing.assert_close(prepared, expected, atol=tolerance, rtol=0, check_dtype=False)


def test_eyes_are_widened_about_those_of_the_portrait(model: S3DNeRF, identity: Identity) -> None:
    model.render_config.eye_motion_scale = 2.0
    eyes = identity.eyes
    assert torch.equal(model.prepare_eyes(identity, eyes), eyes)
    torch.testing.assert_close(model.prepare_eyes(identity, eyes - 0.3), eyes - 0.6)


def test_articulation_widens_lips_and_jaw_about_their_mean(model: S3DNeRF) -> None:
    model.render_config.motion_scale = 1.5
    motion = torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(0))
    wide = model.prepare_motion(motion)
    torch.testing.assert_close(wide[:, :2].mean(0), motion[:, :2].mean(0))
    torch.testing.assert_close(wide[:, :2].std(0), 1.5 * motion[:, :2].std(0))
    assert torch.equal(wide[:, 2:], motion[:, 2:])
