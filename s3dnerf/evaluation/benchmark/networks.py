"""Speed of the super-resolution network as a whole, against other libraries in float32 and int8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s3dnerf import limits
from s3dnerf.evaluation.benchmark.libraries import (
    COMPILED,
    ExportedNetwork,
    UnavailableError,
    compile_function,
    require_packages,
    warm_up,
)
from s3dnerf.evaluation.benchmark.report import Table
from s3dnerf.evaluation.benchmark.timing import on_pytorch, time_functions
from s3dnerf.ops import backend
from s3dnerf.pipeline import TalkingHeadPipeline

Run = Callable[[], Any]


def measure_super_resolution(image: Path, audio: Path, checkpoint: str | None = None, repeats: int = 5) -> Table:
    """Time the super-resolution network on the CPU, on the inputs of rendered frames.

    Libraries do not take turns, since waiting threads of one slow down the next: each is timed alone, between two
    measurements of ours, and dropped again. The table names libraries that are not installed.

    Args:
        image: a source image.
        audio: speech.
        checkpoint: as in ``TalkingHeadPipeline.from_pretrained``.
        repeats: runs of each; the fastest counts.

    Raises:
        UserError: there is no model, no usable face or speech, or an argument is invalid.
    """
    limits.REPEATS.require("repeats", repeats)
    backend.keep_freed_memory()
    network, inputs = _record_inputs(TalkingHeadPipeline.from_pretrained(checkpoint, "cpu"), image, audio)
    frames, _, height, width = inputs[-1].shape

    def run() -> Tensor:
        with torch.inference_mode():
            return network(*inputs)

    expected = on_pytorch(run)().numpy()
    rows: list[dict[str, Any]] = []
    for name, precision, load in _list_libraries(network, inputs, run):
        row: dict[str, Any] = {
            "library": name,
            "precision": precision,
            "ms a frame": "",
            "ours ms": "",
            "ours times as fast": "",
        }
        try:
            before = time_functions([run], repeats)[0]
            other = load()
            found = np.asarray(other())
            its = time_functions([other], repeats)[0]
            del other
            ours = min(before, time_functions([run], repeats)[0])
        except UnavailableError as reason:
            rows.append(row | {"ms a frame": str(reason), "PSNR to PyTorch, dB": ""})
            continue
        error = float(np.square(found.clip(0, 1) - expected.clip(0, 1), dtype=np.float64).mean())
        rows.append(
            {
                **row,
                "ms a frame": 1e3 * its / frames,
                "ours ms": 1e3 * ours / frames,
                "ours times as fast": its / ours,
                "PSNR to PyTorch, dB": -10.0 * np.log10(max(error, 1e-12)),
            }
        )
    title = f"Super-resolution network, {frames} frames {width} x {height}, {torch.get_num_threads()} threads"
    return Table(title, rows)


def _list_libraries(
    network: nn.Module, inputs: tuple[Tensor, ...], run: Run
) -> list[tuple[str, str, Callable[[], Run]]]:
    """Return name, precision and loader of each implementation."""

    def load_compiled() -> Run:
        function = compile_function(network)

        def run_compiled() -> Tensor:
            with torch.inference_mode():
                return function(*inputs)

        return warm_up(run_compiled)

    def load_exported(package: str, precision: str) -> Run:
        require_packages(package)
        with ExportedNetwork(network, inputs) as exported:
            load = {"onnxruntime": exported.load_onnxruntime, "openvino": exported.load_openvino}[package]
            return load(precision)

    libraries: list[tuple[str, str, Callable[[], Run]]] = [
        ("ours", "float32", lambda: run),
        ("PyTorch", "float32", lambda: on_pytorch(run)),
        (COMPILED, "float32", load_compiled),
    ]
    for title, package in (("onnxruntime", "onnxruntime"), ("OpenVINO", "openvino")):
        for precision in ("float32", "int8"):
            libraries.append((title, precision, partial(load_exported, package, precision)))
    return libraries


def _record_inputs(pipeline: TalkingHeadPipeline, image: Path, audio: Path) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the super-resolution network and its inputs for the first frames of a video."""
    recorded: list[tuple[Tensor, ...]] = []
    network = pipeline.model.super_resolution
    handle = network.register_forward_pre_hook(lambda _, given: recorded.append(given))
    try:
        next(iter(pipeline(image, audio)))
    finally:
        handle.remove()
    return network, tuple(part.float().clone() for part in recorded[0] if isinstance(part, Tensor))
