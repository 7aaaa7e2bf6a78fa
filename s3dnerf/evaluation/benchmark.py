"""How fast this machine is: each operator against PyTorch's own, and a rendered frame phase by phase."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf import limits
from s3dnerf.device import choose_device
from s3dnerf.encoding.hash_grid import HashGridConfig, plan_levels
from s3dnerf.media.files import replace_when_done
from s3dnerf.media.image import write_image
from s3dnerf.media.video import VideoWriter
from s3dnerf.metrics import measure_psnr
from s3dnerf.models import s3dnerf as model_module
from s3dnerf.models.layers import ResidualBlock
from s3dnerf.models.s3dnerf.deformation_field import CrossModalFacialDeformationField
from s3dnerf.models.s3dnerf.radiance_field import RadianceField, RadianceFieldConfig
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.models.s3dnerf.super_resolution import SuperResolution
from s3dnerf.ops import backend
from s3dnerf.ops.composite import composite, composite_reference
from s3dnerf.ops.deformation import deform, deform_reference
from s3dnerf.ops.hash_grid import encode_hash_grid, encode_hash_grid_reference, index_vertices
from s3dnerf.ops.layout import GridLevel
from s3dnerf.ops.triplane import sample_triplane, sample_triplane_reference
from s3dnerf.pipeline import TalkingHeadPipeline, TalkingVideo
from s3dnerf.rendering.volume_rendering import DeformedField, render_rays, render_rays_reference
from s3dnerf.structures import Camera

Step = Callable[[], Any]

PHASES: tuple[tuple[str, object, str], ...] = (
    ("speech", S3DNeRF, "encode_speech"),
    ("deformation", S3DNeRF, "drive"),
    ("deformation", CrossModalFacialDeformationField, "deform_lattice"),
    ("lookup, MLP and compositing, fused", model_module, "render_rays"),
    ("warp of the photograph", model_module, "warp_source_image"),
    ("super-resolution", SuperResolution, "forward"),
    ("inside of the mouth", S3DNeRF, "composite_mouth_interior"),
    ("encoding to mp4", VideoWriter, "write"),
)
"""Which functions a frame's time is spent in; those that the model does not call are left out of the table."""


@dataclass(frozen=True)
class Table:
    """Some measurements of one kind."""

    title: str
    rows: list[dict[str, Any]]
    """Cells by column; every row has the same columns."""

    def format(self) -> str:
        """Return the table as Markdown with aligned columns."""
        cells = [list(self.rows[0]), *([_format_cell(cell) for cell in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"{self.title}", "", *lines, ""])


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on: processor, threads, versions and kernels."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _read_processor(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backends": {finding.name: finding.detail for finding in backend.inspect_backends() if finding.present},
    }


def write_json(path: Path, tables: list[Table]) -> None:
    """Write tables, and the machine they were measured on, to a JSON file."""
    content = {"machine": describe_machine(), "tables": {table.title: table.rows for table in tables}}
    with replace_when_done(path, can_stream=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@dataclass(frozen=True)
class Case:
    """One operator at one size."""

    operator: str
    ours: Step
    others: dict[str, Step]
    """The same by other means, by name."""
    repeats: int
    """How often to run each; the fastest counts."""


def measure_kernels(points: int = 2**18, repeats: int = 5, device: str = "auto") -> Table:
    """Time every operator on ``points`` points (samples), forward and with its backward pass.

    The others are timed twice: as PyTorch runs by default, and in turns with ours after
    :func:`s3dnerf.ops.backend.keep_freed_memory`, which is for programs that make many large tensors.
    """
    limits.POINTS.require("--points", points)
    limits.REPEATS.require("--repeats", repeats)
    place = choose_device(device)
    by_default = [
        {name: time_steps([other], case.repeats)[0] for name, other in case.others.items()}
        for case in make_cases(points, repeats, place)
    ]
    backend.keep_freed_memory()
    rows = []
    for case, default in zip(make_cases(points, repeats, place), by_default, strict=True):
        for name, other in case.others.items():
            ours, kept = time_steps([case.ours, other], case.repeats)
            rows.append(
                {
                    "operator": case.operator,
                    "ours ms": ours * 1e3,
                    "million points/s": points / ours / 1e6,
                    "compared with": name,
                    "its ms": default[name] * 1e3,
                    "times as fast": default[name] / ours,
                    "its ms, memory kept": kept * 1e3,
                    "times as fast, memory kept": kept / ours,
                }
            )
    return Table(f"Operators, {points} points, {torch.get_num_threads()} threads, {place.type}", rows)


def time_steps(steps: list[Step], repeats: int) -> list[float]:
    """Return the best time of each function in seconds. They take turns, so that all meet the same disturbances."""
    best = [float("inf")] * len(steps)
    for turn in range(repeats + 1):
        for index, step in enumerate(steps):
            begin = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            # The first turn warms caches and loads libraries.
            if turn > 0:
                best[index] = min(best[index], time.perf_counter() - begin)
    return best


def make_cases(points: int, repeats: int, device: torch.device) -> Iterator[Case]:
    """Yield every operator at every size, with random arguments that are the same each time."""
    generator = torch.Generator().manual_seed(0)
    makers = [_make_triplane_cases, _make_hash_grid_cases, _make_composite_cases, _make_field_cases, _make_warp_cases]
    for make in [*makers, _make_convolution_cases]:
        yield from make(points, repeats, device, generator)


def _make_triplane_cases(points: int, repeats: int, device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    def forward(function, planes: Tensor, positions: Tensor) -> Step:
        return lambda: function(planes, positions)

    def backward(function, planes: Tensor, positions: Tensor, gradient: Tensor) -> Step:
        learned = [part.clone().requires_grad_() for part in (planes, positions)]
        return lambda: torch.autograd.grad(function(*learned), learned, gradient)

    for size in (64, 128, 256):
        planes = torch.randn(1, 3, 32, size, size, generator=generator).to(device)
        # Each side gets the planes as it likes them: ours with channels innermost.
        stored = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        positions = (2.0 * torch.rand(1, points, 3, generator=generator) - 1.0).to(device)
        gradient = torch.randn(1, points, 32, generator=generator).to(device)
        name, other = f"tri-plane {size}^2 x 32", sample_triplane_reference
        yield Case(
            f"{name}, forward",
            forward(sample_triplane, stored, positions),
            {"grid_sample": forward(other, planes, positions)},
            repeats,
        )
        yield Case(
            f"{name}, forward + backward",
            backward(sample_triplane, stored, positions, gradient),
            {"grid_sample": backward(other, planes, positions, gradient)},
            repeats,
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
    def forward(function, positions: Tensor, table: Tensor, levels: list[GridLevel]) -> Step:
        return lambda: function(positions, table, levels)

    def backward(function, positions: Tensor, table: Tensor, levels: list[GridLevel], gradient: Tensor) -> Step:
        learned = table.clone().requires_grad_()
        return lambda: torch.autograd.grad(function(positions, learned, levels), learned, gradient)

    for log2_size, finest in ((14, 512), (16, 512), (19, 2048)):
        levels = plan_levels(HashGridConfig(16, 2, log2_size, 16, finest), 3)
        table = torch.randn(levels[-1].offset + levels[-1].entries, 2, generator=generator).to(device)
        positions = torch.rand(points, 3, generator=generator).to(device)
        gradient = torch.randn(points, 32, generator=generator).to(device)
        name, naive = f"hash grid 16 x 2, 2^{log2_size}", encode_hash_grid_reference
        others = {
            "naive": forward(naive, positions, table, levels),
            "embedding_bag": forward(encode_with_embedding_bags, positions, table, levels),
        }
        # The others take seconds.
        few = min(repeats, 2)
        yield Case(f"{name}, forward", forward(encode_hash_grid, positions, table, levels), others, few)
        yield Case(
            f"{name}, forward + backward",
            backward(encode_hash_grid, positions, table, levels, gradient),
            {"naive": backward(naive, positions, table, levels, gradient)},
            few,
        )


def encode_with_embedding_bags(positions: Tensor, table: Tensor, levels: list[GridLevel]) -> Tensor:
    """The hash grid as one weighted ``embedding_bag`` a level: the quickest way in plain PyTorch."""
    corners = torch.cartesian_prod(*[torch.tensor([0, 1], device=positions.device)] * positions.shape[1])
    features = []
    for level in levels:
        scaled = positions * level.scale + 0.5
        cell = scaled.floor()
        weight = (scaled - cell).unsqueeze(1)
        entries = index_vertices(cell.long().unsqueeze(1) + corners, level)
        shares = ((1.0 - weight) + (2.0 * weight - 1.0) * corners).prod(dim=-1)
        part = table[level.offset : level.offset + level.entries]
        features.append(F.embedding_bag(entries, part, per_sample_weights=shares, mode="sum"))
    return torch.cat(features, dim=-1)


def _make_composite_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    def forward(function, parts: list[Tensor], **options: float) -> Step:
        return lambda: function(*parts, **options).values

    def backward(function, parts: list[Tensor], gradient: Tensor) -> Step:
        learned = [part.clone().requires_grad_() for part in parts]
        return lambda: torch.autograd.grad(function(*learned).values, learned[:2], gradient)

    for samples, channels in ((8, 21), (32, 21), (32, 3)):
        rays = points // samples
        density = (3.0 * torch.rand(rays, samples, generator=generator)).to(device)
        values = torch.randn(rays, samples, channels, generator=generator).to(device)
        lengths = torch.rand(rays, samples, generator=generator).to(device)
        parts = [density, values, lengths]
        gradient = torch.randn(rays, channels, generator=generator).to(device)
        name, eager = f"compositing {samples} x {channels} channels", {"eager": forward(composite_reference, parts)}
        yield Case(f"{name}, forward", forward(composite, parts), eager, repeats)
        yield Case(f"{name}, stop at 1e-3", forward(composite, parts, early_stop_eps=1e-3), eager, repeats)
        yield Case(
            f"{name}, forward + backward",
            backward(composite, parts, gradient),
            {"eager": backward(composite_reference, parts, gradient)},
            repeats,
        )


def _make_field_cases(points: int, repeats: int, device: torch.device, generator: torch.Generator) -> Iterator[Case]:
    """The sizes of `base`: rendering looks at one item, training at a batch of six, in both precisions."""
    field, positions, lengths = _make_field(1, points // 8, device, generator)

    def look(function, **options: float) -> Tensor:
        with torch.inference_mode():
            return function(field, positions, lengths, **options).values

    def look_on_pytorch() -> Tensor:
        with force_backend("pytorch"):
            return look(render_rays_reference)

    others = {"eager": look_on_pytorch, "our separate operators": lambda: look(render_rays_reference)}
    yield Case("fused field, forward", lambda: look(render_rays), others, repeats)
    stopping = {"eager": look_on_pytorch}
    yield Case("fused field, rays stop at 1e-3", lambda: look(render_rays, early_stop_eps=1e-3), stopping, repeats)
    for precision in ("float32", "autocast"):
        yield from _make_learning_cases(points, repeats, device, generator, precision)


def _make_learning_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator, precision: str
) -> Iterator[Case]:
    field, positions, lengths = _make_field(6, points // 48, device, generator)
    learned = [field.lattice, *field.planes, *(part for layer in field.radiance.layers for part in layer)]
    for part in learned:
        part.requires_grad_()
    gradient = torch.randn(6, points // 48, 21, generator=generator).to(device)

    def look(function, backward: bool) -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
            values = function(field, positions, lengths).values
        return torch.autograd.grad(values, learned, gradient) if backward else values

    def look_on_pytorch(backward: bool) -> Any:
        with force_backend("pytorch"):
            return look(render_rays_reference, backward)

    for name, backward in (("forward", False), ("forward + backward", True)):
        others = {
            "eager": partial(look_on_pytorch, backward),
            "our separate operators": partial(look, render_rays_reference, backward),
        }
        yield Case(f"field in training, {precision}, {name}", partial(look, render_rays, backward), others, repeats)


def _make_convolution_cases(
    points: int, repeats: int, device: torch.device, generator: torch.Generator
) -> Iterator[Case]:
    """The residual blocks of super-resolution on ``points`` pixels, float32: two convolutions, SiLU and a sum."""
    for channels, size in ((32, 128), (64, 64)):
        x = torch.randn(max(points // size**2, 1), channels, size, size, generator=generator).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        gradient = torch.randn(x.shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
        block = ResidualBlock(channels)
        for weight in (block.second.weight, block.second.bias):
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
        block.to(device)
        learned = [x.clone().requires_grad_(), *block.parameters()]

        def look(block=block, x=x) -> Tensor:
            with torch.inference_mode():
                return block(x)

        def learn(block=block, learned=learned, gradient=gradient) -> Any:
            return torch.autograd.grad(block(learned[0]), learned, gradient)

        name = f"residual block of {channels} channels, {size}^2"
        yield Case(f"{name}, forward", look, {"eager": partial(_run_on_pytorch, look)}, repeats)
        yield Case(f"{name}, forward + backward", learn, {"eager": partial(_run_on_pytorch, learn)}, repeats)


def _run_on_pytorch(step: Step) -> Any:
    with force_backend("pytorch"):
        return step()


def _make_field(
    batch: int, rays: int, device: torch.device, generator: torch.Generator
) -> tuple[DeformedField, Tensor, Tensor]:
    """A field, and the positions and lengths of 8 samples a ray: three scales of 12 channels, 64 hidden units."""

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
    """The lattice of `base`, with as many points in all: rendering warps it for four frames, training for six."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def warp(function, batch: int, precision: str, backward: bool) -> Step:
        count = points // batch
        parts = [draw(count, 64), draw(count, 6).softmax(dim=-1), draw(batch, 6, 64), draw(batch, 64)]
        layers = [(draw(out, into) * into**-0.5, draw(out)) for into, out in ((64, 32), (32, 64), (128, 7))]
        learned = [*parts, *(part for layer in layers for part in layer)]
        for part in learned:
            part.requires_grad_(backward)
        gradient = draw(batch, count, 7)

        def run() -> Any:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
                result = function(*parts, layers)
            return torch.autograd.grad(result, learned, gradient) if backward else result

        return run

    for precision in ("float32", "autocast"):
        for batch, backward in ((4, False), (6, True)):
            name = f"warp of the lattice, {batch} frames, {precision}, forward{' + backward' * backward}"
            ours, other = (warp(function, batch, precision, backward) for function in (deform, deform_reference))
            yield Case(name, ours, {"eager": other}, repeats)


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Let one backend serve everything for a while."""
    with patch.dict(os.environ, {backend.VARIABLE: name}):
        yield


class PhaseClock:
    """Measures the time spent in named functions, less the time that those they call are charged for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack = threading.local()

    def wrap(self, phase: str, function: Callable) -> Callable:
        """Return ``function`` with its time charged to ``phase``."""

        def timed(*words: Any, **options: Any) -> Any:
            inner, self.stack.inner = getattr(self.stack, "inner", 0.0), 0.0
            begin = time.perf_counter()
            try:
                result = function(*words, **options)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                return result
            finally:
                spent = time.perf_counter() - begin
                self.seconds[phase] += spent - self.stack.inner
                self.stack.inner = inner + spent

        return timed

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Charge the functions of :data:`PHASES` while this lasts."""
        with ExitStack() as stack:
            for phase, owner, name in PHASES:
                if hasattr(owner, name):
                    stack.enter_context(patch.object(owner, name, self.wrap(phase, getattr(owner, name))))
            yield


def measure_render(
    image: Path | None = None,
    audio: Path | None = None,
    checkpoint: str | None = None,
    frames: int = 75,
    device: str = "auto",
) -> list[Table]:
    """Render ``frames`` frames into an mp4 and tell where the time of each went; then compare with PyTorch's operators.

    Args:
        image: a portrait; by default the one that scikit-image brings.
        audio: speech; by default the shipped sentence.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        frames: at most so many.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: no model, no usable face or speech, or an argument is wrong.
    """
    limits.FRAMES.require("--frames", frames)
    place = choose_device(device)
    backend.keep_freed_memory()
    pipeline = TalkingHeadPipeline.from_pretrained(checkpoint, place.type)
    clock = PhaseClock(place)
    with tempfile.TemporaryDirectory() as folder:
        video = pipeline(image or _write_portrait(Path(folder)), audio or _find_speech())
        next(iter(video))
        with clock.watch():
            begin = time.perf_counter()
            with video.open_file(Path(folder) / "video.mp4") as writer:
                count = 0
                for frame in islice(video, frames):
                    writer.write(frame)
                    count += 1
            total = time.perf_counter() - begin
        comparison = _compare_renderings(video, min(count, 40))
    seconds = {**clock.seconds, "all else": max(total - sum(clock.seconds.values()), 0.0), "in all": total}
    rows = [
        {"phase": phase, "ms a frame": 1e3 * spent / count, "frames a second": count / spent}
        for phase, spent in seconds.items()
    ]
    width, height = video.size
    machine = f"{width} x {height}, {torch.get_num_threads()} threads, {place.type}"
    return [
        Table(f"Rendering, {count} frames {machine}", rows),
        Table(f"Frames without the file, {machine}", comparison),
    ]


def _compare_renderings(video: TalkingVideo, frames: int) -> list[dict[str, Any]]:
    """Render the same frames on our kernels and on PyTorch's operators, in turns, best of two."""
    seconds, pictures = {}, {}
    for name in ("auto", "pytorch") * 2:
        with force_backend(name):
            begin = time.perf_counter()
            pictures[name] = list(islice(video, frames))
            seconds[name] = min(time.perf_counter() - begin, seconds.get(name, math.inf))
    psnr = [float(measure_psnr(a, b)[0]) for a, b in zip(*pictures.values(), strict=True)]
    return [
        {
            "ours ms a frame": 1e3 * seconds["auto"] / frames,
            "PyTorch ms a frame": 1e3 * seconds["pytorch"] / frames,
            "times as fast": seconds["pytorch"] / seconds["auto"],
            "PSNR between them, dB": sum(psnr) / len(psnr),
        }
    ]


def _write_portrait(folder: Path) -> Path:
    from skimage.data import astronaut

    write_image(folder / "portrait.png", astronaut())
    return folder / "portrait.png"


def _find_speech() -> Path:
    return Path(backend.__file__).parent / "assets" / "speech.wav"


def _read_processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _format_cell(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.2f}" if cell < 10 else f"{cell:.1f}" if cell < 100 else f"{cell:.0f}"
