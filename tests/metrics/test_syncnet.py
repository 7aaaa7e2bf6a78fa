import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from s3dnerf.errors import UserError
from s3dnerf.metrics.sync import compute_mfcc
from s3dnerf.metrics.syncnet import (
    compute_boxes,
    count_windows,
    crop_face,
    embed_faces,
    embed_speech,
    load_syncnet,
)

CONVOLUTIONS = {
    "netcnnaud": {
        **{0: (64, 1, 3, 3), 4: (192, 64, 3, 3), 8: (384, 192, 3, 3), 11: (256, 384, 3, 3), 14: (256, 256, 3, 3)},
        18: (512, 256, 5, 4),
    },
    "netcnnlip": {
        **{0: (96, 3, 5, 7, 7), 4: (256, 96, 1, 5, 5), 8: (256, 256, 1, 3, 3), 11: (256, 256, 1, 3, 3)},
        **{14: (256, 256, 1, 3, 3), 18: (512, 256, 1, 6, 6)},
    },
}


def public_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes in syncnet_v2.model of syncnet_python."""
    layout: dict[str, tuple[int, ...]] = {}
    norms = []
    for part, convolutions in CONVOLUTIONS.items():
        for index, shape in convolutions.items():
            layout |= {f"{part}.{index}.weight": shape, f"{part}.{index}.bias": shape[:1]}
            norms.append((f"{part}.{index + 1}", shape[0]))
    for part in ("netfcaud", "netfclip"):
        layout |= {f"{part}.0.weight": (512, 512), f"{part}.0.bias": (512,)}
        layout |= {f"{part}.3.weight": (1024, 512), f"{part}.3.bias": (1024,)}
        norms.append((f"{part}.1", 512))
    for name, width in norms:
        layout |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return layout


@pytest.fixture
def network(write_weights):
    return load_syncnet(write_weights("syncnet_v2.model", public_layout()))


def test_public_layout_is_complete(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 13_631_616
    assert {name for name in network.state_dict() if "num_batches" not in name} == set(public_layout())


def test_other_files_are_refused(write_weights):
    layout = public_layout()
    del layout["netfclip.3.bias"]
    with pytest.raises(UserError, match=r"s\.model: is not SyncNet v2: it lacks netfclip\.3\.bias"):
        load_syncnet(write_weights("s.model", layout))


def test_audio_of_frame_k_starts_at_cepstrum_4k(network):
    speech = np.random.default_rng(0).uniform(-0.5, 0.5, 640 * 12)
    embedded = embed_speech(network, speech, count_windows(12, len(speech)))
    assert embedded.shape == (7, 1024)
    window = torch.from_numpy(compute_mfcc(speech)[12:32].T.copy()).float()
    np.testing.assert_allclose(embedded[3], network.embed_audio(window[None, None])[0].numpy(), rtol=1e-4, atol=1e-3)


def test_faces_are_bgr_from_0_to_255(network):
    faces = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    expected = torch.from_numpy(faces.astype(np.float32)).flip(-1).permute(3, 0, 1, 2)
    np.testing.assert_allclose(embed_faces(network, faces), network.embed_lips(expected[None])[0].numpy(), rtol=1e-5)


def test_embeddings_equal_a_slow_reference(network):
    state = {name: value.double() for name, value in network.state_dict().items()}

    def conv(name: str, x: torch.Tensor, index: int, stride, padding) -> torch.Tensor:
        weight, bias = state[f"{name}.{index}.weight"], state[f"{name}.{index}.bias"]
        convolve = F.conv2d if weight.ndim == 4 else F.conv3d
        return norm(f"{name}.{index + 1}", convolve(x, weight, bias, stride, padding)).relu()

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def head(name: str, x: torch.Tensor) -> torch.Tensor:
        x = norm(f"{name}.1", F.linear(x.flatten(1), state[f"{name}.0.weight"], state[f"{name}.0.bias"]))
        return F.linear(x.relu(), state[f"{name}.3.weight"], state[f"{name}.3.bias"])

    generator = torch.Generator().manual_seed(0)
    sound = torch.rand(2, 1, 13, 20, generator=generator)
    x = conv("netcnnaud", conv("netcnnaud", sound.double(), 0, 1, 1), 4, 1, 1)
    x = F.max_pool2d(x, 3, (1, 2))
    for index in (8, 11, 14):
        x = conv("netcnnaud", x, index, 1, 1)
    x = conv("netcnnaud", F.max_pool2d(x, 3, 2), 18, 1, 0)
    torch.testing.assert_close(network.embed_audio(sound).double(), head("netfcaud", x), rtol=1e-3, atol=1e-4)

    faces = torch.rand(1, 3, 5, 224, 224, generator=generator)
    pool = F.max_pool3d
    x = pool(conv("netcnnlip", faces.double(), 0, (1, 2, 2), 0), (1, 3, 3), (1, 2, 2))
    x = pool(conv("netcnnlip", x, 4, (1, 2, 2), (0, 1, 1)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for index in (8, 11, 14):
        x = conv("netcnnlip", x, index, 1, (0, 1, 1))
    x = conv("netcnnlip", pool(x, (1, 3, 3), (1, 2, 2)), 18, 1, 0)
    torch.testing.assert_close(network.embed_lips(faces).double(), head("netfclip", x), rtol=1e-3, atol=1e-4)


def test_windows_end_with_the_shorter_of_lips_and_audio():
    assert [count_windows(*given) for given in ((30, 640 * 30), (30, 640 * 20 + 639), (5, 9999), (3, 0))] == [
        25,
        15,
        0,
        0,
    ]
    assert len(compute_mfcc(np.ones(640 * 30))) >= 4 * (count_windows(30, 640 * 30) - 1) + 20


def test_boxes_enclose_the_landmarks_and_are_smoothed():
    points = np.tile([[10.0, 20.0], [50.0, 100.0], [30.0, 60.0]], (40, 1, 1))
    points[20] += 300.0
    np.testing.assert_allclose(compute_boxes(points), np.tile([30.0, 60.0, 40.0], (40, 1)))
    np.testing.assert_allclose(compute_boxes(points[:3]), np.tile([30.0, 60.0, 40.0], (3, 1)))


def test_a_face_is_cropped_as_by_syncnet_python():
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    half, x, y = 70.5, 128.3, 110.9
    padded = np.pad(frame, ((126, 126), (126, 126), (0, 0)), constant_values=110)
    rows, columns = (
        slice(int(y + 126 - half), int(y + 126 + half * 1.8)),
        slice(int(x + 126 - half * 1.4), int(x + 126 + half * 1.4)),
    )
    np.testing.assert_array_equal(
        crop_face(frame, np.array([x, y, half])), cv2.resize(padded[rows, columns], (224, 224))
    )
    assert (crop_face(frame, np.array([0.0, 250.0, 60.0]))[-20:] == 110).all()
