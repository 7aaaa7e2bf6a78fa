import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.errors import UserError
from s3dnerf.metrics.identity import FACE_TEMPLATE, IResNet, align_face, embed_faces, load_arcface, measure_csim

DEPTHS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
NORM = ("weight", "bias", "running_mean", "running_var")


def public_layout(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone.pth of insightface's arcface_torch."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (width,) for part in NORM}

    layout = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,), "fc.weight": (512, 25088), "fc.bias": (512,)}
    layout |= norm("bn1", 64) | norm("bn2", 512) | norm("features", 512)
    inputs = 64
    for layer, (width, blocks) in enumerate(zip((64, 128, 256, 512), DEPTHS[depth], strict=True), start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            layout |= norm(f"{name}.bn1", inputs) | norm(f"{name}.bn2", width) | norm(f"{name}.bn3", width)
            layout |= {f"{name}.conv1.weight": (width, inputs, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            layout[f"{name}.prelu.weight"] = (width,)
            if block == 0:
                layout[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                layout |= norm(f"{name}.downsample.1", width)
            inputs = width
    return layout


@pytest.mark.parametrize(("depth", "parameters"), [(50, 43_590_848), (100, 65_156_160)])
def test_both_networks_have_the_public_layout(depth, parameters):
    with torch.device("meta"):
        network = IResNet(DEPTHS[depth])
    layout = {name: tuple(value.shape) for name, value in network.state_dict().items() if "num_batches" not in name}
    assert layout == public_layout(depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_embeddings_equal_a_slow_reference(write_weights):
    network = load_arcface(write_weights("arcface.safetensors", public_layout(50)))
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    embeddings = embed_faces(network, faces)
    assert embeddings.shape == (2, 512)
    expected = run_slowly(network.state_dict(), faces)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5 * np.abs(expected).max())


def test_other_networks_are_refused(write_weights):
    layout = {name: shape for name, shape in public_layout(50).items() if not name.startswith("layer3.13")}
    with pytest.raises(UserError, match=r"neither iresnet50 nor iresnet100 \(blocks in its layers: \(3, 4, 13, 3\)\)"):
        load_arcface(write_weights("r.pth", layout))


def test_a_rotated_face_is_aligned():
    # The template, turned by 30 degrees, twice as large and moved; a dot at the tip of the nose.
    angle = np.pi / 6
    turn = 2.0 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = FACE_TEMPLATE @ turn.T + [150.0, 20.0]
    rows, columns = np.mgrid[0:400, 0:400]
    dot = np.exp(-((columns - points[2, 0]) ** 2 + (rows - points[2, 1]) ** 2) / 50.0)
    face = align_face(np.repeat((255 * dot)[..., None], 3, axis=2).astype(np.uint8), points)
    assert face.shape == (112, 112, 3)
    weight = face[..., 0] / face[..., 0].sum()
    center = [(weight * place).sum() for place in np.mgrid[0:112, 0:112]]
    np.testing.assert_allclose(center, FACE_TEMPLATE[2, ::-1], atol=0.05)


def test_cosine_of_known_vectors():
    target = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0], [np.nan, 1.0]])
    generated = np.array([[5.0, 0.0], [1.0, -1.0], [-2.0, -1.0], [1.0, 1.0]])
    np.testing.assert_allclose(measure_csim(target, generated), [1.0, 0.0, -1.0, np.nan], atol=1e-12)
    with pytest.raises(ValueError, match="equal shapes"):
        measure_csim(target, generated[:3])


def run_slowly(state: dict[str, Tensor], faces: np.ndarray) -> np.ndarray:
    """iresnet50 in a row, in double precision."""
    state = {name: value.double() for name, value in state.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-5)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)

    x = (torch.from_numpy(faces).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    x = F.prelu(norm("bn1", conv("conv1", x)), state["prelu.weight"])
    for layer, blocks in enumerate(DEPTHS[50], start=1):
        for block in range(blocks):
            name, stride = f"layer{layer}.{block}", 2 if block == 0 else 1
            residual = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, 2)) if block == 0 else x
            x = F.prelu(
                norm(f"{name}.bn2", conv(f"{name}.conv1", norm(f"{name}.bn1", x))), state[f"{name}.prelu.weight"]
            )
            x = norm(f"{name}.bn3", conv(f"{name}.conv2", x, stride)) + residual
    x = F.linear(norm("bn2", x).flatten(1), state["fc.weight"], state["fc.bias"])
    return norm("features", x).numpy()
