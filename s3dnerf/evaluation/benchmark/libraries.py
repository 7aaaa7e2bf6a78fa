"""Other implementations: ``embedding_bag``, torch.compile, and onnxruntime and OpenVINO for whole networks.

onnx, onnxruntime and OpenVINO are development extras. They are imported only where they are used.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.errors import first_line
from s3dnerf.evaluation.benchmark.timing import Function, on_pytorch
from s3dnerf.ops.hash_grid import index_vertices
from s3dnerf.ops.layout import GridLevel

COMPILED = "torch.compile"


class UnavailableError(Exception):
    """A library cannot be measured; the text says why."""


def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``torch.compile`` of a function for fixed shapes.

    Raises:
        UnavailableError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UnavailableError(f"no C++ compiler ({compiler})")
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def warm_up(function: Function) -> Function:
    """Call a compiled function once with PyTorch's operators, and return it.

    Raises:
        UnavailableError: it cannot be compiled.
    """
    function = on_pytorch(function)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
    except Exception as error:
        # The compiler raises errors of many unrelated types.
        raise UnavailableError(f"cannot be compiled ({first_line(error)})") from error
    return function


def encode_with_embedding_bags(positions: Tensor, table: Tensor, levels: list[GridLevel]) -> Tensor:
    """Encode by one weighted ``embedding_bag`` per level: the fastest hash grid in plain PyTorch."""
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


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def require_packages(*names: str) -> None:
    """Raise UnavailableError unless these packages are installed."""
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise UnavailableError(f"{' and '.join(missing)} not installed")


class ExportedNetwork:
    """A network exported to ONNX, in float32 and in int8, to be run by other libraries. A context manager.

    The int8 model has quantized convolutions (static, per channel), calibrated on the example inputs.

    Args:
        network: in evaluation mode.
        inputs: example inputs; the shapes are fixed.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor]) -> None:
        require_packages("onnx")
        self._folder = tempfile.TemporaryDirectory()
        self._names = [f"input_{number}" for number in range(len(inputs))]
        self._feed = {name: value.contiguous().numpy() for name, value in zip(self._names, inputs, strict=True)}
        self._paths = {"float32": Path(self._folder.name) / "float32.onnx"}

        def export() -> None:
            torch.onnx.export(
                network, tuple(inputs), self._paths["float32"], dynamo=False, opset_version=17, input_names=self._names
            )

        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            on_pytorch(export)()

    def __enter__(self) -> ExportedNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def load_onnxruntime(self, precision: str) -> Callable[[], np.ndarray]:
        """Return a function that runs the network in onnxruntime, in "float32" or "int8"."""
        require_packages("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait by spinning would slow down whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            str(self._find_model(precision)), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, self._feed)[0]

    def load_openvino(self, precision: str) -> Callable[[], np.ndarray]:
        """Return a function that runs the network in OpenVINO, in "float32" or "int8"."""
        require_packages("openvino")
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = openvino.Core().compile_model(self._find_model(precision), "CPU", settings)
        request = model.create_infer_request()
        return lambda: request.infer(self._feed)[0]

    def _find_model(self, precision: str) -> Path:
        if precision not in self._paths:
            self._paths[precision] = self._quantize()
        return self._paths[precision]

    def _quantize(self) -> Path:
        require_packages("onnxruntime")
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Examples(CalibrationDataReader):
            def __init__(self, feed: dict[str, np.ndarray]) -> None:
                self.feeds = iter([feed])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.feeds, None)

        prepared, quantized = (self._paths["float32"].with_name(name) for name in ("prepared.onnx", "int8.onnx"))
        quant_pre_process(self._paths["float32"], prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Examples(self._feed),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["Conv"],
        )
        return quantized
