"""Operators at the sizes at which they are timed, with their PyTorch references and other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s3dnerf.encoding.hash_grid import HashGridConfig, plan_levels
from s3dnerf.evaluation.benchmark.libraries import compile_function, encode_with_embedding_bags
from s3dnerf.evaluation.benchmark.timing import Function, on_pytorch
from s3dnerf.models.layers import ResidualBlock
from s3dnerf.models.s3dnerf.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.ops.composite import composite, composite_reference
from s3dnerf.ops.deformation import deform, deform_reference
from s3dnerf.ops.hash_grid import encode_hash_grid, encode_hash_grid_reference
from s3dnerf.ops.layout import GridLevel
from s3dnerf.ops.triplane import sample_triplane, sample_triplane_reference
from s3dnerf.rendering.volume_rendering import DeformedField, render_rays, render_rays_reference
from s3dnerf.structures import Camera

Operator = Callable[..., Any]
"""An operator: ours, its reference, or ``torch.compile`` of that."""
SEPARATE = "our separate operators"
"""A baseline that is our own code, and not another library."""


@dataclass(frozen=True)
class Case:
    """One operator at one size."""

    operator: str
    ours: Function
    baselines: dict[str, Function]
    """Other implementations, by name."""
    repeats: int
    """Number of runs of each; the fastest counts."""
    compiled: Callable[[], Function] | None = None
    """Builds ``torch.compile`` of the reference; None where that is not compared."""


def make_cases(points: int, repeats: int, device: torch.device) -> Iterator[Case]:
    """Yield every operator at every size, with the same random arguments each time."""
    generator = torch.Generator().manual_seed(0)
    makers = [_make_triplane_cases, _make_hash_grid_cases, _make_composite_cases, _make_field_cases, _make_warp_cases]
    for make in [*makers, _make_convolution_cases]:
        yield from make(points, repeats, device, generator)


def _bind_compiled(bind: Callable[..., Function], function: Operator, *arguments: Any) -> Function:
    return bind(compile_function(function), *arguments)


def _make_triplane_cases(points: int, repeats: int, device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    def forward(function: Operator, planes: Tensor, positions: Tensor) -> Function:
        return lambda: function(planes, positions)

    def backward(function: Operator, planes: Tensor, positions: Tensor, gradient: Tensor) -> Function:
        inputs = [part.clone().requires_grad_() for part in (planes, positions)]
        return lambda: torch.autograd.grad(function(*inputs), inputs, gradient)

    other = sample_triplane_reference
    for size in (64, 128, 256):
        planes = torch.randn(1, 3, 32, size, size, generator=generator).to(device)
        # Each side gets its preferred layout; ours has the channels innermost.
        stored = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        positions = (2.0 * torch.rand(1, points, 3, generator=generator) - 1.0).to(device)
        gradient = torch.randn(1, points, 32, generator=generator).to(device)
        name = f"tri-plane {size}^2 x 32"
        yield Case(
            f"{name}, forward",
            forward(sample_triplane, stored, positions),
            {"grid_sample": forward(other, planes, positions)},
            repeats,
            partial(_bind_compiled, forward, other, planes, positions),
        )
        yield Case(
            f"{name}, forward + backward",
            backward(sample_triplane, stored, positions, gradient),
            {"grid_sample": backward(other, planes, positions, gradient)},
            repeats,
            partial(_bind_compiled, backward, other, planes, positions, gradient),
        )
        yield Case(
            f"{name} bfloat16, forward",
            forward(sample_triplane, stored.bfloat16(), positions),
            {"grid_sample": forward(other, planes.bfloat16(), positions)},
            repeats,
        )


def _make_hash_grid_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    def forward(function: Operator, positions: Tensor, table: Tensor, levels: list[GridLevel]) -> Function:
        return lambda: function(positions, table, levels)

    def backward(
        function: Operator, positions: Tensor, table: Tensor, levels: list[GridLevel], gradient: Tensor
    ) -> Function:
        weights = table.clone().requires_grad_()
        return lambda: torch.autograd.grad(function(positions, weights, levels), weights, gradient)

    naive = encode_hash_grid_reference
    for log2_size, finest in ((14, 512), (16, 512), (19, 2048)):
        levels = plan_levels(HashGridConfig(16, 2, log2_size, 16, finest), 3)
        table = torch.randn(levels[-1].offset + levels[-1].entries, 2, generator=generator).to(device)
        positions = torch.rand(points, 3, generator=generator).to(device)
        gradient = torch.randn(points, 32, generator=generator).to(device)
        name = f"hash grid 16 x 2, 2^{log2_size}"
        baselines = {
            "naive": forward(naive, positions, table, levels),
            "embedding_bag": forward(encode_with_embedding_bags, positions, table, levels),
        }
        # The baselines take seconds.
        few = min(repeats, 2)
        yield Case(
            f"{name}, forward",
            forward(encode_hash_grid, positions, table, levels),
            baselines,
            few,
            partial(_bind_compiled, forward, naive, positions, table, levels),
        )
        yield Case(
            f"{name}, forward + backward",
            backward(encode_hash_grid, positions, table, levels, gradient),
            {"naive": backward(naive, positions, table, levels, gradient)},
            few,
            partial(_bind_compiled, backward, naive, positions, table, levels, gradient),
        )


def _make_composite_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    def composite_values(density: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        return composite_reference(density, values, lengths).values

    def forward(function: Operator, parts: list[Tensor], **options: float) -> Function:
        return lambda: function(*parts, **options).values

    def backward(function: Operator, parts: list[Tensor], gradient: Tensor) -> Function:
        inputs = [part.clone().requires_grad_() for part in parts]
        return lambda: torch.autograd.grad(function(*inputs).values, inputs[:2], gradient)

    def compiled(parts: list[Tensor]) -> Function:
        function = compile_function(composite_values)
        return lambda: function(*parts)

    def compiled_backward(parts: list[Tensor], gradient: Tensor) -> Function:
        function, inputs = compile_function(composite_values), [part.clone().requires_grad_() for part in parts]
        return lambda: torch.autograd.grad(function(*inputs), inputs[:2], gradient)

    for samples, channels in ((8, 21), (32, 21), (32, 3)):
        rays = points // samples
        density = (3.0 * torch.rand(rays, samples, generator=generator)).to(device)
        values = torch.randn(rays, samples, channels, generator=generator).to(device)
        lengths = torch.rand(rays, samples, generator=generator).to(device)
        parts = [density, values, lengths]
        gradient = torch.randn(rays, channels, generator=generator).to(device)
        name, eager = f"compositing {samples} x {channels} channels", {"eager": forward(composite_reference, parts)}
        build = partial(compiled, parts)
        yield Case(f"{name}, forward", forward(composite, parts), eager, repeats, build)
        yield Case(f"{name}, stop at 1e-3", forward(composite, parts, early_stop_eps=1e-3), eager, repeats, build)
        yield Case(
            f"{name}, forward + backward",
            backward(composite, parts, gradient),
            {"eager": backward(composite_reference, parts, gradient)},
            repeats,
            partial(compiled_backward, parts, gradient),
        )


def _make_field_cases(points: int, repeats: int, device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    """Yield the sizes of ``base``: rendering has a batch of one, training a batch of six in both precisions."""
    field, positions, lengths = _make_field(1, points // 8, device, generator)

    def render(function: Operator, **options: float) -> Tensor:
        with torch.inference_mode():
            return function(field, positions, lengths, **options).values

    def compiled() -> Function:
        function = compile_function(render_rays_reference)
        return lambda: render(function)

    eager = on_pytorch(lambda: render(render_rays_reference))
    baselines = {"eager": eager, SEPARATE: lambda: render(render_rays_reference)}
    yield Case("fused field, forward", lambda: render(render_rays), baselines, repeats, compiled)
    stopping = partial(render, render_rays, early_stop_eps=1e-3)
    yield Case("fused field, rays stop at 1e-3", stopping, {"eager": eager}, repeats, compiled)
    for precision in ("float32", "autocast"):
        yield from _make_field_training_cases(points, repeats, device, generator, precision)


def _make_field_training_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator, precision: str
) -> Iterator[Case]:
    field, positions, lengths = _make_field(6, points // 48, device, generator)
    weights = [field.lattice, *field.planes, *(part for layer in field.radiance.layers for part in layer)]
    for part in weights:
        part.requires_grad_()
    gradient = torch.randn(6, points // 48, 21, generator=generator).to(device)

    def run(function: Operator, backward: bool) -> Function:
        def step() -> Any:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
                values = function(field, positions, lengths).values
            return torch.autograd.grad(values, weights, gradient) if backward else values

        return step

    for name, backward in (("forward", False), ("forward + backward", True)):
        separate = run(render_rays_reference, backward)
        yield Case(
            f"field in training, {precision}, {name}",
            run(render_rays, backward),
            {"eager": on_pytorch(separate), SEPARATE: separate},
            repeats,
            partial(_bind_compiled, run, render_rays_reference, backward) if precision == "float32" else None,
        )


def _make_field(
    batch: int, rays: int, device: torch.device, generator: torch.Generator
) -> tuple[DeformedField, Tensor, Tensor]:
    """Return a field, and the positions and lengths of 8 samples per ray: three scales of 12 channels, 64 units."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    radiance = RadianceField(RadianceFieldConfig(hidden=64, features=16), plane_features=36, ambient=4).to(device)
    for weight, bias in radiance.layers:
        weight.data, bias.data = draw(*weight.shape) * weight.shape[1] ** -0.5, draw(*bias.shape)
    radiance.requires_grad_(False)
    field = DeformedField(
        lattice=0.05 * draw(batch, 44 * 72 * 8, 7),
        lattice_size=(44, 72, 8),
        lattice_center=(0.0, -0.38, 0.45),
        lattice_focus=(0.35, 0.6, 1.0),
        lattice_extent=(2.1, 1.65, 0.88),
        planes=[draw(batch, 3, 12, size, size) for size in (16, 32, 64)],
        camera=Camera(torch.eye(3, device=device).expand(batch, 3, 3), draw(batch).abs() + 0.5, 0.1 * draw(batch, 2)),
        radiance=radiance,
    )
    return field, 0.4 * draw(batch, rays, 8, 3), torch.full((batch, rays, 8), 0.06, device=device)


def _make_warp_cases(points: int, repeats: int, device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    """Yield the lattice of ``base`` with ``points`` points in all: four frames for rendering, six for training."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def warp(batch: int, precision: str, backward: bool) -> Callable[[Callable[..., Tensor]], Function]:
        count = points // batch
        parts = [draw(count, 64), draw(count, 6).softmax(dim=-1), draw(batch, 6, 64), draw(batch, 64)]
        layers = [(draw(out, into) * into**-0.5, draw(out)) for into, out in ((64, 32), (32, 64), (128, 7))]
        inputs = [*parts, *(part for layer in layers for part in layer)]
        for part in inputs:
            part.requires_grad_(backward)
        gradient = draw(batch, count, 7)

        def bind(function: Callable[..., Tensor]) -> Function:
            def run() -> Any:
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
                    result = function(*parts, layers)
                return torch.autograd.grad(result, inputs, gradient) if backward else result

            return run

        return bind

    for precision in ("float32", "autocast"):
        for batch, backward in ((4, False), (6, True)):
            name = f"warp of the lattice, {batch} frames, {precision}, forward{' + backward' * backward}"
            bind = warp(batch, precision, backward)
            build = partial(_bind_compiled, bind, deform_reference) if precision == "float32" else None
            yield Case(name, bind(deform), {"eager": bind(deform_reference)}, repeats, build)


def _make_convolution_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    """Yield the residual blocks (two convolutions, SiLU, sum) of super-resolution on ``points`` pixels."""
    for channels, size in ((32, 128), (64, 64)):
        x = torch.randn(max(points // size**2, 1), channels, size, size, generator=generator).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        gradient = torch.randn(x.shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
        block = ResidualBlock(channels)
        for weight in block.second.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
        block.to(device)
        inputs = [x.clone().requires_grad_(), *block.parameters()]

        def forward(function: Operator, x: Tensor = x) -> Function:
            def run() -> Tensor:
                with torch.inference_mode():
                    return function(x)

            return run

        def forward_bf16(function: Operator, x: Tensor = x) -> Function:
            def run() -> Tensor:
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                    return function(x)

            return run

        def backward(function: Operator, inputs: list[Tensor] = inputs, gradient: Tensor = gradient) -> Function:
            return lambda: torch.autograd.grad(function(inputs[0]), inputs, gradient)

        for name, bind in (("forward", forward), ("autocast, forward", forward_bf16), ("forward + backward", backward)):
            ours = bind(block)
            yield Case(
                f"residual block of {channels} channels, {size}^2, {name}",
                ours,
                {"eager": on_pytorch(ours)},
                repeats,
                None if bind is forward_bf16 else partial(_bind_compiled, bind, block),
            )
