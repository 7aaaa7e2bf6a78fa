"""Convert the face models of mediapipe to the files in s3dnerf/weights.

    pip install tflite
    pip download --no-deps mediapipe==0.10.21
    python tools/convert_mediapipe.py mediapipe-0.10.21-*.whl

Half-precision weights are kept as they are.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import flatbuffers.table
import numpy as np
import tflite
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from s3dnerf.errors import UserError
from s3dnerf.face.attention_mesh import ATTENTION_MESH_WEIGHTS, AttentionMesh
from s3dnerf.face.detector import DETECTION_WEIGHTS, FarNetwork, NearNetwork
from s3dnerf.face.face_mesh import FACE_MESH_WEIGHTS, FaceMesh
from s3dnerf.face.segmentation import SEGMENTATION_WEIGHTS, SegmentationNetwork
from s3dnerf.media.files import atomic_write

FAR_WEIGHTS = DETECTION_WEIGHTS / "far.safetensors"
MODULES = "mediapipe/modules"
MODELS = {
    # Outputs by name, in the order in which the network defines what leads to them.
    FACE_MESH_WEIGHTS: (FaceMesh, "face_landmark/face_landmark.tflite", ("conv2d_21", "conv2d_31")),
    ATTENTION_MESH_WEIGHTS: (
        AttentionMesh,
        "face_landmark/face_landmark_with_attention.tflite",
        (
            *("output_mesh_identity", "conv_faceflag", "output_lips"),
            *("output_left_eye", "output_left_iris", "output_right_eye", "output_right_iris"),
        ),
    ),
    DETECTION_WEIGHTS / "near.safetensors": (
        NearNetwork,
        "face_detection/face_detection_short_range.tflite",
        ("classificators", "regressors"),
    ),
    FAR_WEIGHTS: (
        FarNetwork,
        "face_detection/face_detection_full_range_sparse.tflite",
        ("Identity_1", "Identity"),
    ),
    SEGMENTATION_WEIGHTS: (
        SegmentationNetwork,
        "selfie_segmentation/selfie_segmentation.tflite",
        ("activation_10",),
    ),
}
LAYERS = {"CONV_2D": nn.Conv2d, "DEPTHWISE_CONV_2D": nn.Conv2d, "PRELU": nn.PReLU}
LAYERS["Convolution2DTransposeBias"] = nn.ConvTranspose2d
KINDS = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the models and write their weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel of mediapipe 0.10.21, for any platform")
    parser.add_argument("--out", type=Path, default=FACE_MESH_WEIGHTS.parents[1], help="folder to write to")
    options = parser.parse_args(arguments)
    for path, (network, model, outputs) in MODELS.items():
        content = read_model(options.wheel, f"{MODULES}/{model}")
        weights = name_weights(network(pretrained=False), Graph(content).read_layers(outputs))
        target = options.out / path.relative_to(FACE_MESH_WEIGHTS.parents[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def read_model(wheel: Path, name: str) -> bytes:
    """Read a file of a wheel. Raises UserError if the wheel lacks it or cannot be read."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        hint = "Give a wheel from `pip download --no-deps mediapipe==0.10.21`."
        raise UserError(wheel, f"{name} cannot be read ({error})", hint) from error


class Graph:
    """The operators of a TFLite model."""

    def __init__(self, content: bytes) -> None:
        self._model = tflite.Model.GetRootAsModel(content, 0)
        self._graph = self._model.Subgraphs(0)
        self._made_by = {}
        for index in range(self._graph.OperatorsLength()):
            operator = self._graph.Operators(index)
            for tensor in operator.OutputsAsNumpy():
                self._made_by[int(tensor)] = operator

    def read_layers(self, outputs: Sequence[str]) -> list[tuple[str, list[Tensor]]]:
        """Return kind and weights of the layers that lead to each output in turn, each layer once."""
        tensors = {self._graph.Tensors(int(i)).Name().decode(): int(i) for i in self._graph.OutputsAsNumpy()}
        layers, seen = [], set()
        for output in outputs:
            found: set[int] = set()
            self._collect(tensors[output], found)
            for tensor in sorted(found - seen):
                operator = self._made_by[tensor]
                kind = self._kind(operator)
                if kind in LAYERS:
                    layers.append((kind, [self._read(int(i)) for i in operator.InputsAsNumpy()[1:]]))
            seen |= found
        return layers

    def _collect(self, tensor: int, found: set[int]) -> None:
        operator = self._made_by.get(tensor)
        if operator is not None and tensor not in found:
            found.add(tensor)
            for source in operator.InputsAsNumpy():
                self._collect(int(source), found)

    def _kind(self, operator: tflite.Operator) -> str:
        code = self._model.OperatorCodes(operator.OpcodeIndex())
        kind = KINDS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        return code.CustomCode().decode() if kind == "CUSTOM" else kind

    def _read(self, tensor: int) -> Tensor:
        # Weights are stored in half precision, each followed by an operator that makes it single precision, and pruned
        # ones sparsely, followed by one that makes them dense.
        while tensor in self._made_by:
            tensor = int(self._made_by[tensor].InputsAsNumpy()[0])
        place = self._graph.Tensors(tensor)
        kind = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}[place.Type()]
        values = self._model.Buffers(place.Buffer()).DataAsNumpy().view(kind)
        shape, sparsity = place.ShapeAsNumpy(), place.Sparsity()
        return torch.from_numpy(
            (values.reshape(shape) if sparsity is None else densify(values, shape, sparsity)).copy()
        )


def densify(values: np.ndarray, shape: np.ndarray, sparsity: tflite.SparsityParameters) -> np.ndarray:
    """Return sparse weights ``[outputs, 1, 1, inputs]`` as a dense array.

    Raises:
        ValueError: they are stored in another way than a model of mediapipe stores them.
    """
    formats = [sparsity.DimMetadata(axis).Format() for axis in range(len(shape))]
    plain = sparsity.BlockMapLength() == 0 and sparsity.TraversalOrderAsNumpy().tolist() == list(range(len(shape)))
    if not plain or formats != [tflite.DimensionType.DENSE] * 3 + [tflite.DimensionType.SPARSE_CSR]:
        raise ValueError("these sparse weights are stored in another way than those of mediapipe 0.10.21")
    rows = sparsity.DimMetadata(3)
    starts = read_integers(rows.ArraySegmentsType(), rows.ArraySegments())
    columns = read_integers(rows.ArrayIndicesType(), rows.ArrayIndices())
    dense = np.zeros((int(np.prod(shape[:3])), shape[3]), values.dtype)
    dense[np.repeat(np.arange(len(dense)), np.diff(starts)), columns] = values[: len(columns)]
    return dense.reshape(shape)


def read_integers(kind: int, table: flatbuffers.table.Table) -> np.ndarray:
    """Return one of the three kinds of vectors of integers that sparse weights have."""
    kinds = {
        tflite.SparseIndexVector.Int32Vector: tflite.Int32Vector,
        tflite.SparseIndexVector.Uint16Vector: tflite.Uint16Vector,
        tflite.SparseIndexVector.Uint8Vector: tflite.Uint8Vector,
    }
    vector = kinds[kind]()
    vector.Init(table.Bytes, table.Pos)
    return vector.ValuesAsNumpy().astype(np.int64)


def name_weights(network: nn.Module, layers: list[tuple[str, list[Tensor]]]) -> dict[str, Tensor]:
    """Return weights with the names of a network whose layers are defined in the order of the file.

    Raises:
        ValueError: the layers are not those of the network.
    """
    names = list(list_layers(network))
    if [kind for _, kind in names] != [LAYERS[kind] for kind, _ in layers]:
        raise ValueError(f"this is not the model that {type(network).__name__} was written for")
    weights = {}
    for (name, _), (kind, parts) in zip(names, layers, strict=True):
        if kind == "PRELU":
            weights[f"{name}.weight"] = parts[0].reshape(-1)
        else:
            # TensorFlow: outputs, height, width, inputs; depthwise: 1, height, width, channels.
            order = (3, 0, 1, 2) if kind != "CONV_2D" else (0, 3, 1, 2)
            weights[f"{name}.weight"] = parts[0].permute(order).contiguous()
            weights[f"{name}.bias"] = parts[1]
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(f"a layer of {type(network).__name__} has another shape")
    return weights


def list_layers(network: nn.Module) -> Iterator[tuple[str, type[nn.Module]]]:
    """Yield name and kind of every layer with weights, in the order of definition."""
    for name, module in network.named_modules():
        if isinstance(module, tuple(set(LAYERS.values()))):
            yield name, next(kind for kind in LAYERS.values() if isinstance(module, kind))


if __name__ == "__main__":
    main()
