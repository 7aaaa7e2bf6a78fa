"""Convert the published Moonshine encoder to s3dnerf/weights/speech/moonshine_tiny.safetensors.

    npm pack @moonshine-ai/moonshine-js@0.1.29 && tar xzf moonshine-ai-moonshine-js-0.1.29.tgz
    pip install onnx
    python tools/convert_moonshine.py --onnx package/dist/model/tiny/quantized/encoder_model.onnx --clips data/prepared

8-bit weights are kept as they are. Mean and variance of the first convolution's response to speech at the normal level
are measured on prepared clips of the train split; they replace those of the recording at inference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from s3dnerf.data.clip import list_clips, load_clip
from s3dnerf.media.audio import measure_level, speech_gain
from s3dnerf.media.files import atomic_write
from s3dnerf.models.speech_features import MOONSHINE

LAYERS = 3


def main() -> None:
    """Convert the encoder and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True, help="the published encoder")
    parser.add_argument("--clips", type=Path, required=True, help="prepared clips")
    parser.add_argument("--out", type=Path, default=MOONSHINE, help="file to write")
    options = parser.parse_args()
    weights = read_weights(onnx.load(options.onnx).graph)
    mean, variance = measure_response(weights, options.clips)
    weights |= {"groupnorm.mean": torch.tensor(mean), "groupnorm.variance": torch.tensor(variance)}
    with atomic_write(options.out) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def read_weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Return the stem and the first layers with the names of transformers' MoonshineEncoder.

    A quantized tensor ``name`` in int8 comes with ``name.scale`` and ``name.offset``: weight = number x scale + offset.
    """
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    weights: dict[str, Tensor] = {}
    for index in (1, 2, 3):
        name = f"conv{index}.weight"
        add_quantized(weights, name, *(stored[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point")))
        if f"conv{index}.bias" in stored:
            weights[f"conv{index}.bias"] = torch.tensor(stored[f"conv{index}.bias"])
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            # "/layers.0/self_attn/q_proj/MatMul_quant" multiplies from the right by an unsigned matrix.
            place = ".".join(node.name.strip("/").split("/")[:-1]).replace("self_attn.dense", "self_attn.o_proj")
            base = node.input[1].removesuffix("_quantized")
            if int(place.split(".")[1]) < LAYERS:
                scale, zero = (float(stored[f"{base}_{part}"]) for part in ("scale", "zero_point"))
                signed = (stored[node.input[1]].astype(np.int16) - 128).astype(np.int8).T
                add_quantized(weights, f"{place}.weight", signed, scale, (128 - zero) * scale)
    for name, value in stored.items():
        inside = name.startswith("layers.") and int(name.split(".")[1]) < LAYERS
        if inside and name.endswith(("norm.weight", ".bias")):
            weights[name] = torch.tensor(value)
    # The exporter named the two parts of the group norm by numbers.
    scale, shift = (next(n for n in graph.node if n.name == f"/groupnorm/{part}").input[1] for part in ("Mul", "Add"))
    weights["groupnorm.weight"], weights["groupnorm.bias"] = (torch.tensor(stored[n][:, 0]) for n in (scale, shift))
    return weights


def add_quantized(weights: dict[str, Tensor], name: str, number: np.ndarray, scale: float, offset: float) -> None:
    """Add one quantized tensor."""
    weights[name] = torch.from_numpy(np.ascontiguousarray(number))
    weights[f"{name}.scale"], weights[f"{name}.offset"] = (
        torch.tensor(np.float32(np.asarray(part).reshape(-1)[0])) for part in (scale, offset)
    )


def measure_response(weights: dict[str, Tensor], clips: Path) -> tuple[float, float]:
    """Return mean and variance of tanh(first convolution), averaged over clips."""
    kernel = weights["conv1.weight"].float() * weights["conv1.weight.scale"] + weights["conv1.weight.offset"]
    found = []
    for folder in tqdm(list_clips(clips, "train"), desc="encoding clips"):
        clip = load_clip(folder)
        if clip.has_speech and clip.sync in ("ok", "corrected"):
            speech = clip.read_speech()
            speech = torch.from_numpy(speech * np.float32(speech_gain(measure_level([speech]))))
            response = torch.nn.functional.conv1d(speech[None, None], kernel, stride=64).tanh()
            found.append((response.mean(), response.var(correction=0)))
    mean, variance = torch.tensor(found).mean(dim=0).tolist()
    return mean, variance


if __name__ == "__main__":
    main()
