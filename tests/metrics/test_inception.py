import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s3dnerf.errors import UserError
from s3dnerf.metrics.inception import FIDInception, extract_features, load_inception

STEM = {
    **{"Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3)},
    **{"Conv2d_3b_1x1": (80, 64, 1, 1), "Conv2d_4a_3x3": (192, 80, 3, 3)},
}


def convolution_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Every convolution of pt_inception-2015-12-05-6726825d.pth, by the tables of torchvision's inception.py."""
    shapes = dict(STEM)

    def add(block: str, **branches: tuple[int, int, int, int]) -> None:
        shapes.update({f"{block}.{name}": shape for name, shape in branches.items()})

    for block, n, pool in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        add(block, branch1x1=(64, n, 1, 1), branch5x5_1=(48, n, 1, 1), branch5x5_2=(64, 48, 5, 5))
        add(block, branch3x3dbl_1=(64, n, 1, 1), branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3))
        add(block, branch_pool=(pool, n, 1, 1))
    add("Mixed_6a", branch3x3=(384, 288, 3, 3), branch3x3dbl_1=(64, 288, 1, 1))
    add("Mixed_6a", branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3))
    for block, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        add(block, branch1x1=(192, 768, 1, 1), branch_pool=(192, 768, 1, 1))
        add(block, branch7x7_1=(c, 768, 1, 1), branch7x7_2=(c, c, 1, 7), branch7x7_3=(192, c, 7, 1))
        add(block, branch7x7dbl_1=(c, 768, 1, 1), branch7x7dbl_2=(c, c, 7, 1), branch7x7dbl_3=(c, c, 1, 7))
        add(block, branch7x7dbl_4=(c, c, 7, 1), branch7x7dbl_5=(192, c, 1, 7))
    add("Mixed_7a", branch3x3_1=(192, 768, 1, 1), branch3x3_2=(320, 192, 3, 3), branch7x7x3_1=(192, 768, 1, 1))
    add("Mixed_7a", branch7x7x3_2=(192, 192, 1, 7), branch7x7x3_3=(192, 192, 7, 1), branch7x7x3_4=(192, 192, 3, 3))
    for block, n in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        add(block, branch1x1=(320, n, 1, 1), branch3x3_1=(384, n, 1, 1), branch_pool=(192, n, 1, 1))
        add(block, branch3x3_2a=(384, 384, 1, 3), branch3x3_2b=(384, 384, 3, 1), branch3x3dbl_1=(448, n, 1, 1))
        add(block, branch3x3dbl_2=(384, 448, 3, 3), branch3x3dbl_3a=(384, 384, 1, 3), branch3x3dbl_3b=(384, 384, 3, 1))
    return shapes


def public_layout() -> dict[str, tuple[int, ...]]:
    layout: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convolution_shapes().items():
        layout[f"{name}.conv.weight"] = shape
        layout |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
    return layout


@pytest.fixture
def network(write_weights) -> FIDInception:
    return load_inception(write_weights("inception.pth", public_layout()))


def test_public_layout_is_complete(network):
    assert len(convolution_shapes()) == 94
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_785_568


def test_features_equal_a_slow_reference(network):
    picture = np.random.default_rng(0).integers(0, 256, (1, 80, 100, 3), dtype=np.uint8)
    features = extract_features(network, picture)
    assert features.shape == (1, 2048)
    np.testing.assert_allclose(features, run_slowly(network.state_dict(), picture), rtol=1e-4, atol=1e-5)


def test_other_files_are_refused(write_weights):
    layout = public_layout()
    del layout["Mixed_7c.branch_pool.bn.bias"]
    with pytest.raises(UserError, match=r"i\.pth: is not the Inception network of FID: it lacks Mixed_7c"):
        load_inception(write_weights("i.pth", layout))


def run_slowly(state: dict[str, Tensor], picture: np.ndarray) -> np.ndarray:
    """The network in a row, in double precision, as pytorch-fid describes it."""

    def conv(name: str, x: Tensor, stride: int = 1, pad: bool = True) -> Tensor:
        part = {key: state[f"{name}.{key}"].double() for key in ("conv.weight", "bn.running_mean", "bn.running_var")}
        padding = [side // 2 if pad else 0 for side in part["conv.weight"].shape[2:]]
        x = F.conv2d(x, part["conv.weight"], None, stride, padding)
        statistics = part["bn.running_mean"], part["bn.running_var"]
        return F.batch_norm(
            x, *statistics, state[f"{name}.bn.weight"].double(), state[f"{name}.bn.bias"].double(), eps=1e-3
        ).relu()

    def chain(block: str, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = conv(f"{block}.{name}", x)
        return x

    def average(x: Tensor) -> Tensor:
        counts = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1) / counts

    x = torch.from_numpy(picture).permute(0, 3, 1, 2).double() / 255
    x = 2 * F.interpolate(x, (299, 299), mode="bilinear") - 1
    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2, pad=False), pad=False)
    x = F.max_pool2d(conv("Conv2d_2b_3x3", x), 3, 2)
    x = F.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x), pad=False), 3, 2)
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        double = chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        parts = [chain(block, x, "branch1x1"), chain(block, x, "branch5x5_1", "branch5x5_2"), double]
        x = torch.cat([*parts, chain(block, average(x), "branch_pool")], 1)
    double = conv("Mixed_6a.branch3x3dbl_3", chain("Mixed_6a", x, "branch3x3dbl_1", "branch3x3dbl_2"), 2, pad=False)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, 2, pad=False), double, F.max_pool2d(x, 3, 2)], 1)
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        double = chain(block, x, *(f"branch7x7dbl_{number}" for number in range(1, 6)))
        parts = [chain(block, x, "branch1x1"), chain(block, x, "branch7x7_1", "branch7x7_2", "branch7x7_3"), double]
        x = torch.cat([*parts, chain(block, average(x), "branch_pool")], 1)
    first = conv("Mixed_7a.branch3x3_2", chain("Mixed_7a", x, "branch3x3_1"), 2, pad=False)
    second = chain("Mixed_7a", x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    second = conv("Mixed_7a.branch7x7x3_4", second, 2, pad=False)
    x = torch.cat([first, second, F.max_pool2d(x, 3, 2)], 1)
    for block, pool in (("Mixed_7b", average), ("Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))):
        one, two = chain(block, x, "branch3x3_1"), chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
        forks = [chain(block, one, f"branch3x3_2{side}") for side in "ab"]
        forks += [chain(block, two, f"branch3x3dbl_3{side}") for side in "ab"]
        x = torch.cat([chain(block, x, "branch1x1"), *forks, chain(block, pool(x), "branch_pool")], 1)
    return x.mean(dim=(2, 3)).numpy()
