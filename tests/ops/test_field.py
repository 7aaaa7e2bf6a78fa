"""The fused path of every backend against float64, and against the separate operators of S3DNeRF that it replaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from s3dnerf.models.audio_encoder import AudioEncoderConfig
from s3dnerf.models.layers import encode_sine
from s3dnerf.models.s3dnerf.appearance_encoder import AppearanceEncoderConfig
from s3dnerf.models.s3dnerf.config import ModelConfig
from s3dnerf.models.s3dnerf.deformation_field import AMBIENT_COORDINATES, DeformationConfig
from s3dnerf.models.s3dnerf.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.ops import field as operators
from s3dnerf.ops.composite import composite_reference
from s3dnerf.ops.image import make_pixel_grid
from s3dnerf.ops.triplane import sample_triplane_reference
from s3dnerf.rendering.rays import cast_rays, project_points
from s3dnerf.rendering.sampling import place_samples
from s3dnerf.rendering.threads import use_threads
from s3dnerf.rendering.volume_rendering import DeformedField, interpolate_lattice, render_rays, render_rays_reference
from s3dnerf.structures import Camera

from .conftest import relative_error

# Channels per plane, hidden, features, ambient, octaves, scales, samples, rays.
SIZES = [
    (12, 64, 16, 4, 3, 3, 8, 101),
    (5, 20, 3, 0, 1, 1, 3, 1),
    (32, 96, 32, 6, 4, 3, 5, 49),
    (17, 33, 0, 1, 0, 2, 4, 48),
    (8, 24, 8, 2, 2, 2, 21, 37),
]


def make_radiance(layers: list[tuple[torch.Tensor, torch.Tensor]], octaves: int) -> RadianceField:
    """Return a radiance network with these layers."""
    (first, _), _, (_, last) = layers
    network = RadianceField(RadianceFieldConfig(max(len(first), 1), max(len(last) - 4, 1)), 1, 1)
    network.frequencies = octaves
    for module, (weight, bias) in zip(network.network[::2], layers, strict=True):
        module.weight, module.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return network


def make_field(make, channels, hidden, features, ambient, octaves, scales) -> DeformedField:
    inputs = scales * channels + ambient + 3 + 3 * (1 + 2 * octaves)
    widths = [(inputs, hidden), (hidden, hidden), (hidden, 4 + features)]
    return DeformedField(
        lattice=0.1 * make(2, 5 * 6 * 3, 3 + ambient),
        lattice_size=(5, 6, 3),
        lattice_center=(0.0, -0.38, 0.45),
        lattice_focus=(0.3, 0.3, 1.0),
        lattice_extent=(2.2, 2.3, 0.9),
        planes=[make(2, 3, channels, 4 * 2**s, 5 * 2**s) for s in range(scales)],
        camera=Camera(torch.linalg.qr(make(2, 3, 3)).Q, make.uniform(2, low=0.5, high=1.5), 0.1 * make(2, 2)),
        radiance=make_radiance([(make(out, into) * into**-0.5, 0.3 * make(out)) for into, out in widths], octaves),
    )


def widen(field: DeformedField) -> DeformedField:
    """Return the field in float64."""
    camera = field.camera
    return replace(
        field,
        lattice=field.lattice.double(),
        planes=[scale.double() for scale in field.planes],
        camera=Camera(camera.rotation.double(), camera.scale.double(), camera.center.double()),
        radiance=make_radiance(
            [(weight.double(), bias.double()) for weight, bias in field.radiance.layers], field.radiance.frequencies
        ),
    )


def describe(field, positions, deltas, stop=0.0) -> operators.FieldArguments:
    """Return the arguments that the operator passes to a library."""
    return field.make_arguments(positions, deltas, stop)


def run(library, field, positions, deltas, stop=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the fused path on a given library."""
    return operators.launch_forward(library, describe(field, positions, deltas, stop))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("stop", [0.0, 1e-2])
def test_agrees_with_float64(library, make, device, sizes, stop) -> None:
    *widths, samples, rays = sizes
    field = make_field(make, *widths)
    positions = make.uniform(2, rays, samples, 3, low=-1.2, high=1.2)
    deltas = make.uniform(2, rays, samples, low=0.0, high=1.0)
    truth = render_rays_reference(widen(field), positions.double(), deltas.double(), stop)
    values, alpha = run(library, field, positions, deltas, stop)
    assert relative_error(values, truth.values) < 1e-5
    assert relative_error(alpha, truth.alpha) < 1e-5


def test_bfloat16_planes_shared_by_the_batch(library, make, device) -> None:
    field = make_field(make, *SIZES[0][:6])
    planes = [scale[:1].bfloat16() for scale in field.planes]
    positions, deltas = make.uniform(2, 60, 4, 3, low=-1.0), make.uniform(2, 60, 4)
    truth = render_rays_reference(widen(replace(field, planes=planes)), positions.double(), deltas.double())
    values, _ = run(library, replace(field, planes=planes), positions, deltas)
    assert relative_error(values, truth.values) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_positions_spoil_only_their_own_ray(library, make, device, bad) -> None:
    field = make_field(make, *SIZES[1][:6])
    positions, deltas = make.uniform(2, 60, 3, 3, low=-1.0), make.uniform(2, 60, 3)
    whole, _ = run(library, field, positions, deltas)
    positions[1, 7, 1, 0] = bad
    result, _ = run(library, field, positions, deltas)
    others = torch.ones(2, 60, dtype=torch.bool, device=device)
    others[1, 7] = False
    assert torch.equal(result[others], whole[others])
    assert result[1, 7].isnan().any() or bad == bad


def make_model() -> S3DNeRF:
    """Return a small model in which every parameter has an effect."""
    config = ModelConfig(
        ray_size=16,
        samples=6,
        appearance=AppearanceEncoderConfig((8, 8, 8, 8), 6),
        audio=AudioEncoderConfig(width=16),
        deformation=DeformationConfig(token_width=16, code_width=8, hidden=16, lattice_size=(12, 12, 4)),
        radiance=RadianceFieldConfig(24, 5),
    )
    model = S3DNeRF(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_gives_what_the_model_renders_line_by_line(cpu) -> None:
    torch.manual_seed(0)
    model = make_model()
    angle = torch.tensor(0.2)
    turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    camera = Camera(turn.expand(2, 3, 3), torch.tensor([0.8, 0.7]), torch.tensor([[0.0, 0.1], [0.1, 0.0]]))
    planes = [torch.randn(2, 3, 6, size, size) for size in (4, 8, 16)]
    field = model.deformation_field
    with torch.inference_mode():
        rays = cast_rays(make_pixel_grid(16, 16).flatten(0, 1), camera)
        samples = place_samples(rays, 6)
        lattice = 0.1 * torch.randn(2, len(field.lattice.points), 3 + AMBIENT_COORDINATES)

        positions = samples.positions.flatten(1, 2)
        shape = (field.lattice.size, field.lattice.center, field.lattice.focus, field.lattice.extent)
        fused = DeformedField(lattice, *shape, planes, camera, model.radiance_field)
        deformation = interpolate_lattice(fused, positions)
        offsets, ambient = deformation[..., :3], deformation[..., 3:]
        source = project_points(positions + offsets, camera)
        appearance = [sample_triplane_reference(scale, source) for scale in planes]
        inputs = [*appearance, ambient, 4.0 * offsets, encode_sine(positions, 3)]
        result = model.radiance_field.network(torch.cat(inputs, dim=-1))
        values = torch.cat([result[..., 1:4].sigmoid(), result[..., 4:], source[..., :2]], dim=-1)
        density = 4.0 * torch.nn.functional.softplus(result[..., 0]).unflatten(1, (-1, 6))
        truth = composite_reference(density, values.unflatten(1, (-1, 6)), samples.deltas)

        seen = render_rays(fused, samples.positions, samples.deltas)
    torch.testing.assert_close(seen.values, truth.values, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(seen.alpha, truth.alpha, atol=1e-4, rtol=0.0)


def list_learned(field: DeformedField) -> list[torch.Tensor]:
    """Return the trainable inputs of the field, in the order of the gradients from the kernels."""
    return [field.lattice, *field.planes, *(part for layer in field.radiance.layers for part in layer)]


def differentiate_truly(field, positions, deltas, gradients, stop=0.0) -> list[torch.Tensor]:
    """Return the gradients in float64, through separate operators."""
    wide = widen(field)
    learned = [part.requires_grad_() for part in list_learned(wide)]
    seen = render_rays_reference(wide, positions.double(), deltas.double(), stop)
    return list(torch.autograd.grad([seen.values, seen.alpha], learned, [part.double() for part in gradients]))


def differentiate(library, field, positions, deltas, gradients, stop=0.0) -> list[torch.Tensor]:
    """Return the gradients of the fused path on a given library."""
    results = operators.launch_backward(library, gradients, describe(field, positions, deltas, stop))
    for index in range(1, 1 + len(field.planes)):
        results[index] = results[index].permute(0, 1, 4, 2, 3)
    return results


def assert_agree(results, truths, tolerance=1e-4) -> None:
    assert len(results) == len(truths)
    for result, truth in zip(results, truths, strict=True):
        assert result.shape == truth.shape and relative_error(result, truth) < tolerance


def make_rays(make, batch, rays, samples, features, reach=1.2) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return positions, deltas, and gradients with respect to the ray outputs."""
    positions = make.uniform(batch, rays, samples, 3, low=-reach, high=reach)
    gradients = [make(batch, rays, features + 5), make(batch, rays)]
    return positions, make.uniform(batch, rays, samples), gradients


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("stop", [0.0, 1e-2])
def test_gradients_agree_with_float64(library, make, sizes, stop) -> None:
    *widths, samples, rays = sizes
    field = make_field(make, *widths)
    positions, deltas, gradients = make_rays(make, 2, rays, samples, widths[2])
    results = differentiate(library, field, positions, deltas, gradients, stop)
    assert_agree(results, differentiate_truly(field, positions, deltas, gradients, stop))


@pytest.mark.parametrize("batch", [1, 6])
def test_gradients_for_any_share_of_the_threads(library, make, batch) -> None:
    """Use three threads: rays of one item in several threads, and items that end within the part of a thread."""
    field = repeat_field(make_field(make, *SIZES[0][:6]), batch)
    positions, deltas, gradients = make_rays(make, batch, 70, 4, 16)
    truths = differentiate_truly(field, positions, deltas, gradients)
    with use_threads(3):
        runs = [differentiate(library, field, positions, deltas, gradients) for _ in range(2)]
    assert_agree(runs[0], truths)
    if library.prefix == "s3d_cpu":
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def repeat_field(field: DeformedField, batch: int) -> DeformedField:
    """Return the field for a batch of another size, with different items."""
    index = torch.arange(batch) % 2
    camera = Camera(field.camera.rotation[index], field.camera.scale[index], field.camera.center[index])
    lattice = field.lattice[index] * torch.arange(1, batch + 1).to(field.lattice)[:, None, None] / batch
    return replace(field, lattice=lattice, camera=camera, planes=[scale[index] for scale in field.planes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_planes_shared_by_the_batch(library, make, dtype) -> None:
    field = make_field(make, *SIZES[0][:6])
    field = replace(field, planes=[scale[:1].to(dtype) for scale in field.planes])
    positions, deltas, gradients = make_rays(make, 2, 50, 4, 16)
    with use_threads(2):
        results = differentiate(library, field, positions, deltas, gradients)
    truths = differentiate_truly(field, positions, deltas, gradients)
    assert all(scale.dtype == dtype for scale in results[1:4])
    assert_agree(results, truths, 1e-4 if dtype == torch.float32 else 1e-2)


def test_gradients_far_outside_and_behind_opaque_samples(library, make) -> None:
    field = make_field(make, *SIZES[0][:6])
    positions, deltas, gradients = make_rays(make, 2, 40, 6, 16, reach=20.0)
    deltas[:, ::2] *= 1e3
    for stop in (0.0, 1e-3):
        results = differentiate(library, field, positions, deltas, gradients, stop)
        assert_agree(results, differentiate_truly(field, positions, deltas, gradients, stop))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_bad_positions_never_leave_the_arrays(library, make, bad) -> None:
    field = make_field(make, *SIZES[1][:6])
    positions, deltas, gradients = make_rays(make, 2, 60, 3, 3)
    positions[1, 7, 1, 0] = bad
    results = differentiate(library, field, positions, deltas, gradients)
    assert all(result[0].isfinite().all() for result in results[:2])
    assert results[2].isnan().any() or bad == bad


def test_on_a_gpu_a_ray_that_does_not_fit_in_shared_memory_runs_on_separate_operators(make, emulated) -> None:
    *widths, few, _ = SIZES[0]
    field = make_field(make, *widths)
    for part in list_learned(field):
        part.requires_grad_()
    inputs, hidden, outputs = 3 * 12 + 4 + 3 + 21, 64, 20
    most = operators.MAX_CUDA_SHARED // (inputs + 2 * hidden + outputs + operators.CUDA_SAMPLE_ROWS) - 1
    for samples, fits in ((few, True), (most, True), (most + 1, False)):
        positions, deltas, gradients = make_rays(make, 2, 5, samples, 16)
        arguments = describe(field, positions, deltas)
        meta = replace(arguments, positions=positions.to("meta"))
        assert operators.has_gradients(meta) == fits
        with torch.no_grad():
            if fits:
                results = differentiate(emulated, field, positions, deltas, gradients)
                assert all(result.isfinite().all() for result in results)
            else:
                with pytest.raises(RuntimeError, match="a size is out of range"):
                    differentiate(emulated, field, positions, deltas, gradients)


def test_no_rays_give_no_gradients(library, make) -> None:
    field = make_field(make, *SIZES[1][:6])
    positions, deltas, gradients = make_rays(make, 2, 0, 3, 3)
    results = differentiate(library, field, positions, deltas, gradients)
    assert all(result.eq(0.0).all() for result in results)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_in_bfloat16_where_they_are_allowed(library, make, sizes) -> None:
    *widths, samples, rays = sizes
    field = make_field(make, *widths)
    positions, deltas, gradients = make_rays(make, 2, rays, samples, widths[2])
    allowed = replace(describe(field, positions, deltas), bf16_products=True)
    truth = render_rays_reference(widen(field), positions.double(), deltas.double())
    values, alpha = operators.launch_forward(library, allowed)
    assert relative_error(values, truth.values) < 1e-2
    assert relative_error(alpha, truth.alpha) < 1e-2
    if library.prefix == "s3d_cpu":
        truths = differentiate_truly(field, positions, deltas, gradients)
        truths[1 : 1 + len(field.planes)] = [part.permute(0, 1, 3, 4, 2) for part in truths[1 : 1 + len(field.planes)]]
        assert_agree(operators.launch_backward(library, gradients, allowed), truths, 1e-2)


@pytest.fixture
def learning(cpu, make) -> tuple[DeformedField, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return a field that requires gradients, and its rays."""
    field = make_field(make, *SIZES[0][:6])
    for part in list_learned(field):
        part.requires_grad_()
    return field, *make_rays(make, 2, 30, 4, 16)


@pytest.mark.parametrize("device", ["cpu"])
def test_see_field_learns_in_one_operator(learning, device, monkeypatch) -> None:
    """Return the field with planes of one source expanded to the batch."""
    field, positions, deltas, gradients = learning
    field = replace(field, planes=[scale[:1] for scale in field.planes])
    truths = differentiate_truly(field, positions, deltas, gradients)
    monkeypatch.setattr("s3dnerf.rendering.volume_rendering.render_rays_reference", None)
    expanded = [scale.expand(2, -1, -1, -1, -1) for scale in field.planes]
    seen = render_rays(replace(field, planes=expanded), positions, deltas)
    assert_agree(torch.autograd.grad([seen.values, seen.alpha], list_learned(field), gradients), truths)


@pytest.mark.parametrize("device", ["cpu"])
def test_positions_and_cameras_learn_on_separate_operators(learning, device) -> None:
    field, positions, deltas, _ = learning
    field.camera.scale.requires_grad_()
    positions.requires_grad_()
    seen = render_rays(field, positions, deltas)
    results = torch.autograd.grad(seen.values.sum(), [positions, field.camera.scale, field.lattice])
    assert all(result.isfinite().all() and result.abs().max() > 0 for result in results)


@pytest.mark.parametrize("device", ["cpu"])
def test_compiles_as_one_graph_with_the_same_gradients(learning, device) -> None:
    field, positions, deltas, gradients = learning

    def look(field: DeformedField) -> tuple[torch.Tensor, torch.Tensor]:
        seen = render_rays(field, positions, deltas)
        return seen.values, seen.alpha

    eager = torch.autograd.grad(look(field), list_learned(field), gradients)
    compiled = torch.compile(look, fullgraph=True, backend="aot_eager")
    results = torch.autograd.grad(compiled(field), list_learned(field), gradients)
    for one, other in zip(results, eager, strict=True):
        torch.testing.assert_close(one, other)
