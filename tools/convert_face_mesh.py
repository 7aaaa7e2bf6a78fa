"""Convert the face mesh model of mediapipe to s3dnerf/weights/face_mesh/face_mesh.safetensors.

    pip install tflite
    python tools/convert_face_mesh.py

Half-precision weights are kept as they are. The branch for face presence is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tflite
import torch
from safetensors.torch import save_file
from torch import Tensor

from s3dnerf.face.face_mesh import BLOCK_CHANNELS, FACE_MESH_WEIGHTS, MESH_POINT_COUNT
from s3dnerf.face.landmarks import load_mediapipe
from s3dnerf.media.files import atomic_write

KINDS = {tflite.BuiltinOperator.CONV_2D: "conv", tflite.BuiltinOperator.DEPTHWISE_CONV_2D: "depthwise"}
KINDS[tflite.BuiltinOperator.PRELU] = "prelu"


def main() -> None:
    """Convert the model and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FACE_MESH_WEIGHTS, help="file to write")
    options = parser.parse_args()
    source = Path(load_mediapipe().__file__).parent / "modules" / "face_landmark" / "face_landmark.tflite"
    weights = name_weights(read_operators(source.read_bytes()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def read_operators(content: bytes) -> list[tuple[str, int, list[Tensor]]]:
    """Return the kind, input tensor and weights of every layer of the landmark branch, in order."""
    model = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    made_by = {}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        made_by[int(operator.OutputsAsNumpy()[0])] = operator
    (landmarks,) = (
        int(i) for i in graph.OutputsAsNumpy() if graph.Tensors(i).ShapeAsNumpy()[-1] == 3 * MESH_POINT_COUNT
    )

    def needed(tensor: int, seen: dict[int, None]) -> dict[int, None]:
        operator = made_by.get(tensor)
        if operator is not None and tensor not in seen:
            for source in operator.InputsAsNumpy():
                needed(int(source), seen)
            seen[tensor] = None
        return seen

    def read(tensor: int) -> Tensor:
        # Weights are stored in half precision, each followed by a dequantize operator.
        source = int(made_by[tensor].InputsAsNumpy()[0]) if tensor in made_by else tensor
        place = graph.Tensors(source)
        raw = model.Buffers(place.Buffer()).DataAsNumpy().view(np.float16)
        return torch.from_numpy(raw.reshape(place.ShapeAsNumpy()).copy())

    layers = []
    for tensor in sorted(needed(landmarks, {})):
        operator = made_by[tensor]
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = KINDS.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        if kind:
            inputs = [int(i) for i in operator.InputsAsNumpy()]
            layers.append((kind, inputs[0], [read(i) for i in inputs[1:]]))
    return layers


def name_weights(layers: list[tuple[str, int, list[Tensor]]]) -> dict[str, Tensor]:
    """Return the weights with the names of :class:`s3dnerf.face.face_mesh.FaceMesh`.

    Raises:
        ValueError: the layers are not those of the face mesh.
    """
    names = list(list_layers())
    if [kind for kind, _ in names] != [kind for kind, *_ in layers]:
        raise ValueError("this is not the face mesh that the network was written for")
    weights = {}
    for (kind, name), (_, _, parts) in zip(names, layers, strict=True):
        if kind == "prelu":
            weights[f"{name}.weight"] = parts[0].reshape(-1)
        else:
            # TensorFlow: outputs, height, width, inputs; depthwise: 1, height, width, channels.
            order = (0, 3, 1, 2) if kind == "conv" else (3, 0, 1, 2)
            weights[f"{name}.weight"] = parts[0].permute(order).contiguous()
            weights[f"{name}.bias"] = parts[1]
    return weights


def list_layers() -> Iterator[tuple[str, str]]:
    """Yield kind and name of every layer, in the order of the file."""
    yield from (("conv", "stem"), ("prelu", "stem_activation"))
    for stage, outputs in enumerate(BLOCK_CHANNELS):
        for block in range(len(outputs)):
            yield from list_block(f"stages.{stage}.{block}")
    yield from (("conv", "head.0"), ("prelu", "head.1"))
    yield from list_block("head.2")
    yield "conv", "head.3"


def list_block(name: str) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the layers of a residual block."""
    yield from (("depthwise", f"{name}.depthwise"), ("conv", f"{name}.pointwise"), ("prelu", f"{name}.activation"))


if __name__ == "__main__":
    main()
