import numpy as np
import pytest
import torch

from s3dnerf.errors import UserError
from s3dnerf.metrics.lpips import LPIPS, load_lpips, measure_lpips

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG = {
    **{0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3), 12: (256, 256, 3)},
    **{14: (256, 256, 3), 17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3)},
    **{26: (512, 512, 3), 28: (512, 512, 3)},
}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
CONVOLUTIONS = {"alex": ALEX, "vgg": VGG}


def trunk_layout(trunk: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in torchvision's alexnet-owt-7be5be79.pth and vgg16-397923af.pth (part of the classifier)."""
    layout = {"classifier.6.bias": (1000,)}
    for index, (outputs, inputs, side) in CONVOLUTIONS[trunk].items():
        layout |= {f"features.{index}.weight": (outputs, inputs, side, side), f"features.{index}.bias": (outputs,)}
    return layout


def heads_layout(trunk: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in lpips/weights/v0.1/alex.pth and vgg.pth."""
    return {f"lin{number}.model.1.weight": (1, width, 1, 1) for number, width in enumerate(HEADS[trunk])}


@pytest.fixture
def alex(write_weights) -> LPIPS:
    return load_lpips(
        "alex", write_weights("a.pth", trunk_layout("alex")), write_weights("h.pth", heads_layout("alex"))
    )


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)


def test_equal_images_have_no_distance_and_the_distance_is_symmetric(alex, pictures):
    target, generated = pictures
    np.testing.assert_array_equal(measure_lpips(alex, target, target), [0.0, 0.0])
    there, back = measure_lpips(alex, target, generated), measure_lpips(alex, generated, target)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0).all()
    np.testing.assert_allclose(measure_lpips(alex, target / 255.0, generated / 255.0), there, rtol=1e-4)


def test_distance_of_flat_images_by_hand():
    # Channel 0 sees red, channel 1 is always 1: unit features are (r, 1) / sqrt(r^2 + 1).
    network = LPIPS("alex")
    for parameter in network.parameters():
        parameter.data.zero_()
    network.features[0].weight.data[0, 0, 5, 5] = 1.0
    network.features[0].bias.data[1] = 1.0
    network.heads[0].weight.data[0, :2, 0, 0] = torch.tensor([3.0, 0.5])
    red = np.array([2.0 * 1.0 - 1.0 + 0.030, 2.0 * 0.6 - 1.0 + 0.030]) / 0.458
    (a, b), (c, d) = (red / np.sqrt(red**2 + 1)), (1 / np.sqrt(red**2 + 1))
    target, generated = (np.full((1, 40, 40, 3), value) for value in (1.0, 0.6))
    expected = 3.0 * (a - b) ** 2 + 0.5 * (c - d) ** 2
    np.testing.assert_allclose(measure_lpips(network, target, generated), expected, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_public_vgg_layout_loads_and_is_cut_after_its_relus(write_weights, suffix):
    trunk, heads = trunk_layout("vgg"), heads_layout("vgg")
    network = load_lpips("vgg", write_weights("t" + suffix, trunk), write_weights("h" + suffix, heads))
    features = network.extract_features(torch.rand(1, 3, 64, 64))
    assert [part.shape[1:] for part in features] == [
        (64, 64, 64),
        (128, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
        (512, 4, 4),
    ]
    for part in features:
        torch.testing.assert_close(part.norm(dim=1), torch.ones_like(part[:, 0]))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_layers_equal_a_slow_reference(alex):
    picture = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    state = alex.features.state_dict()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (2 * picture - 1 - shift[:, None, None]) / scale[:, None, None]
    for number, (index, stride, padding) in enumerate(((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))):
        if number in (1, 2):
            x = torch.nn.functional.max_pool2d(x, 3, 2)
        x = torch.nn.functional.conv2d(x, state[f"{index}.weight"], state[f"{index}.bias"], stride, padding).relu()
        expected = x / x.norm(dim=1, keepdim=True)
        torch.testing.assert_close(alex.extract_features(picture)[number], expected)


def test_wrong_files_are_reported(write_weights, tmp_path):
    trunk, heads = write_weights("trunk.pth", trunk_layout("alex")), write_weights("heads.pth", heads_layout("alex"))
    with pytest.raises(UserError, match=r"missing\.pth: is not there"):
        load_lpips("alex", tmp_path / "missing.pth", heads)
    with pytest.raises(
        UserError, match=r"trunk\.pth: is not the LPIPS heads for AlexNet: it lacks 0\.weight and 4 more"
    ):
        load_lpips("alex", trunk, trunk)
    with pytest.raises(UserError, match=r"trunk\.pth: is not VGG-16: it lacks 12\.bias"):
        load_lpips("vgg", trunk, write_weights("vgg.pth", heads_layout("vgg")))
    with pytest.raises(UserError, match=r"0\.weight is \[1, 63, 1, 1\] instead of \[1, 64, 1, 1\]"):
        load_lpips("alex", trunk, write_weights("h.pth", heads_layout("alex") | {"lin0.model.1.weight": (1, 63, 1, 1)}))
    with pytest.raises(UserError, match=r"it has 5\.weight, which the network has not"):
        load_lpips("alex", trunk, write_weights("h.pth", heads_layout("alex") | {"lin5.model.1.weight": (1, 9, 1, 1)}))
    (tmp_path / "noise.pth").write_bytes(b"noise" * 100)
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    for name in ("noise.pth", "noise.safetensors"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as a state dict"):
            load_lpips("alex", trunk, tmp_path / name)
    torch.save(LPIPS("alex"), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"whole\.pth: cannot be read as a state dict"):
        load_lpips("alex", trunk, tmp_path / "whole.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth: is not a state dict"):
        load_lpips("alex", trunk, tmp_path / "list.pth")
