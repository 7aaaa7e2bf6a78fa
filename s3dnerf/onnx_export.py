"""Export of the function that renders a frame to ONNX, by PyTorch's tracing exporter on the reference operators.

The graph has fixed sizes and one frame for each run. Its inputs are the motion codes, the eyes and the camera of the
frame, and all tensors of an encoded portrait, so that one file serves every portrait.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s3dnerf.errors import UserError
from s3dnerf.evaluation.benchmark.timing import force_backend, time_functions
from s3dnerf.media.files import atomic_write
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.precision import mixed_precision
from s3dnerf.rendering.background import Background
from s3dnerf.structures import Camera, Source, map_tensors

OPSET = 20
"""The first one that samples volumes, which the deformation needs."""
OUTPUT = "frames"
"""Name of the output, ``uint8 [1, S, S, 3]``."""
_TORCH: Any = torch
"""PyTorch with functions that its type stubs leave out."""
FRAME_INPUTS = ("motion", "eyes", "rotation", "scale", "center")


class FrameRenderer(nn.Module):
    """Renders a frame from a flat list of tensors, in the order of :func:`flatten_inputs`."""

    def __init__(self, model: S3DNeRF, identity: Identity, background: Background) -> None:
        """Build it around a model; ``identity`` and ``background`` give the structure of the inputs."""
        super().__init__()
        self.model, self.structure = model, (identity, background)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the frame ``uint8 [1, S, S, 3]``."""
        motion, eyes, rotation, scale, center, *rest = values
        tensors: Iterator[Tensor] = iter(rest)
        identity, background = (map_tensors(part, lambda _: next(tensors)) for part in self.structure)
        with ExportableFunctions():
            rendering = self.model(identity, motion, eyes, Camera(rotation, scale, center), background=background)
            image = (255.0 * rendering.image + 0.5).clamp(0.0, 255.0)
        return image.to(torch.uint8).permute(0, 2, 3, 1)


class ExportableFunctions(TorchFunctionMode):
    """Makes sizes of tensors plain numbers for the tracer, and replaces functions that the exporter does not know."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch."""
        kwargs = kwargs or {}
        if func in _SIZES:
            # Otherwise a traced size is a tensor, which `round`, `range` and `interpolate` do not take.
            state = _TORCH._C._get_tracing_state()
            _TORCH._C._set_tracing_state(None)
            try:
                return func(*args, **kwargs)
            finally:
                _TORCH._C._set_tracing_state(state)
        return _REPLACEMENTS.get(func, func)(*args, **kwargs)


def compute_gradient(x: Tensor, *, spacing: tuple[Tensor], dim: int) -> tuple[Tensor]:
    """Return what ``torch.gradient`` returns for coordinates along one dimension."""
    (places,) = spacing
    steps = places[1:] - places[:-1]
    shape = [-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())]
    size = x.shape[dim]
    slopes = (x.narrow(dim, 1, size - 1) - x.narrow(dim, 0, size - 1)) / steps.view(shape)
    before, after = steps[:-1].view(shape), steps[1:].view(shape)
    earlier, later = slopes.narrow(dim, 0, size - 2), slopes.narrow(dim, 1, size - 2)
    inner = (after * earlier + before * later) / (before + after)
    return (torch.cat([slopes.narrow(dim, 0, 1), inner, slopes.narrow(dim, size - 2, 1)], dim=dim),)


def count_smaller(sorted_values: Tensor, x: Tensor) -> Tensor:
    """Return what ``torch.searchsorted`` returns for short rows ``[B, K]`` and values ``[B, N]``."""
    return (sorted_values[:, None] < x[:, :, None]).long().sum(dim=-1)


class RunningMaximum:
    """What ``Tensor.cummax`` returns, without the indices."""

    def __init__(self, x: Tensor, dim: int) -> None:
        parts = list(x.unbind(dim))
        for index in range(1, len(parts)):
            parts[index] = torch.maximum(parts[index - 1], parts[index])
        self.values = torch.stack(parts, dim=dim)


_TENSOR: Any = Tensor
_SIZES = {
    *(_TENSOR.shape.__get__, _TENSOR.ndim.__get__),
    *(Tensor.size, Tensor.__len__, Tensor.dim, Tensor.numel, Tensor.stride),
}
_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.gradient: compute_gradient,
    torch.searchsorted: count_smaller,
    Tensor.cummax: RunningMaximum,
}


def _write_bits(name: str, of_booleans: str) -> Callable[..., Any]:
    def write(graph: Any, left: Any, right: Any) -> Any:
        return graph.op(of_booleans if left.type().scalarType() == "Bool" else name, left, right)

    return write


def _write_expm1(graph: Any, x: Any) -> Any:
    one = graph.op("Constant", value_t=torch.tensor(1.0))
    return graph.op("Sub", graph.op("Exp", x), one)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "asinh": lambda graph, x: graph.op("Asinh", x),
    "expm1": _write_expm1,
    **dict.fromkeys(("bitwise_and", "__and__"), _write_bits("BitwiseAnd", "And")),
    **dict.fromkeys(("bitwise_xor", "__xor__"), _write_bits("BitwiseXor", "Xor")),
}
"""Operators that ONNX has, or nearly, and the exporter does not know."""


@contextmanager
def register_operators() -> Iterator[None]:
    """Tell PyTorch's exporter how to write our operators, inside the block."""
    try:
        for name, write in _OPERATORS.items():
            _TORCH.onnx.register_custom_op_symbolic(f"aten::{name}", write, OPSET)
        yield
    finally:
        for name in _OPERATORS:
            _TORCH.onnx.unregister_custom_op_symbolic(f"aten::{name}", OPSET)


def export_renderer(model: S3DNeRF, out: str | Path) -> list[str]:
    """Write the function that renders a frame as an ONNX file, and return the names of its inputs.

    Args:
        model: in evaluation mode, on the CPU, in float32.
        out: the file; it appears when it is complete.

    Raises:
        UserError: the package onnx is missing, or the file cannot be written.
    """
    try:
        import onnx  # noqa: F401 (the exporter needs it)
    except ImportError as error:
        raise UserError("onnx", f"cannot be loaded ({error})", 'Run: pip install "s3dnerf[export]"') from None
    with torch.no_grad(), force_backend("pytorch"):
        identity, background = make_example(model)
        values = flatten_inputs(identity, background, identity.source_motion, identity.eyes, identity.camera)
        renderer = FrameRenderer(model, identity, background).eval()
        with atomic_write(out) as part, register_operators(), warnings.catch_warnings():
            # It warns that Python numbers become constants, which is meant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                renderer,
                tuple(values.values()),
                str(part),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(values),
                output_names=[OUTPUT],
            )
    return list(values)


@dataclass(frozen=True)
class Comparison:
    """A frame of onnxruntime beside one of our operators, in the same run, with one thread each."""

    exported_ms: float
    """Best time of a frame in onnxruntime."""
    own_ms: float
    """Best time of a frame on the backend that this machine uses, in the precision of the pipeline."""
    max_difference: int
    """Largest difference of a pixel to the reference operators in float32, in levels of 255."""


def compare_export(model: S3DNeRF, path: str | Path, repeats: int = 10) -> Comparison:
    """Compare an exported file with the model that it was made from, on the CPU.

    Raises:
        UserError: the package onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime", f"cannot be loaded ({error})", 'Run: pip install "s3dnerf[export]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known, threads = {entry.name for entry in session.get_inputs()}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            with force_backend("pytorch"):
                identity, background = make_example(model)
                inputs = (identity.source_motion, identity.eyes, identity.camera)
                values = flatten_inputs(identity, background, *inputs)
                expected = FrameRenderer(model, identity, background)(*values.values()).numpy()
            feed = {name: value.numpy() for name, value in values.items() if name in known}
            difference = np.abs(session.run(None, feed)[0].astype(int) - expected).max()
            with mixed_precision(torch.device("cpu")):
                encoded = model.encode_identity(make_source(model))
                lattice = model.deformation_field.encode_lattice()

                def render() -> None:
                    model(encoded, *inputs, lattice=lattice, background=background)

                exported, own = time_functions([lambda: session.run(None, feed), render], repeats)
    finally:
        torch.set_num_threads(threads)
    return Comparison(1e3 * exported, 1e3 * own, int(difference))


def make_source(model: S3DNeRF) -> Source:
    """Return a grey image with a mean face, of the size of a model."""
    side = model.config.image_size
    camera = Camera(torch.eye(3)[None], torch.full((1,), 0.75), torch.zeros(1, 2))
    image, matte = torch.full((1, 3, side, side), 0.5), torch.ones(1, 1, side, side)
    return Source(image, camera, model.canonical_landmarks[None], torch.full((1, 2), 0.3), matte)


def make_example(model: S3DNeRF) -> tuple[Identity, Background]:
    """Return an identity and a background of the sizes of a model."""
    source, side = make_source(model), model.config.image_size
    half = torch.ones(1, 1, side // 2, side // 2)
    identity = map_tensors(model.encode_identity(source), torch.Tensor.float)
    return identity, Background(source.image, half, 0 * half, half)


def flatten_inputs(
    identity: Identity, background: Background, motion: Tensor, eyes: Tensor, camera: Camera
) -> dict[str, Tensor]:
    """Return all inputs of the graph by name.

    Args:
        identity: as of ``EncodedPortrait``. The graph generates no eyes for closed ones.
        background: as of ``EncodedPortrait``, with an image.
        motion: ``[1, R, code]`` motion codes of the frame, after ``S3DNeRF.prepare_motion``.
        eyes: ``[1, 2]`` eye openness, after ``S3DNeRF.prepare_eyes``.
        camera: pose of the head in the frame.
    """
    frame = zip(FRAME_INPUTS, (motion, eyes, camera.rotation, camera.scale, camera.center), strict=True)
    parts = [*frame, *_flatten(replace(identity, closed_eyes=None), "identity"), *_flatten(background, "background")]
    return {name: value.float().contiguous() for name, value in parts}


def make_feed(*parts: Any) -> dict[str, np.ndarray]:
    """Return the inputs for ``InferenceSession.run`` of onnxruntime; the arguments are those of `flatten_inputs`."""
    return {name: value.cpu().numpy() for name, value in flatten_inputs(*parts).items()}


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name}.{index}")
    elif is_dataclass(value):
        for part in fields(value):
            yield from _flatten(getattr(value, part.name), f"{name}.{part.name}")
