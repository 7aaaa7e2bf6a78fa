"""Fitting of an identity: closer to the source, unchanged from other views, and no change of the model itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s3dnerf.data.batch import Batch
from s3dnerf.errors import UserError
from s3dnerf.fitting import add_residuals, fit_identity, render_still, source_loss, turn_camera
from s3dnerf.models.s3dnerf.identity import Identity
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.structures import Camera, map_tensors
from s3dnerf.training.config import S3DNeRFConfig


@pytest.fixture(scope="module")
def model(load_smoke: Callable[..., S3DNeRFConfig]) -> S3DNeRF:
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke().model).eval()
    # All weights are perturbed: zero-initialized layers would pass no gradient.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def identity(model: S3DNeRF, drawn_batch: Batch) -> Identity:
    with torch.no_grad():
        return map_tensors(model.encode_identity(drawn_batch.images.sources), lambda x: x[:1])


def measure(model: S3DNeRF, identity: Identity) -> Tensor:
    with torch.no_grad():
        return source_loss(render_still(model, identity, identity.camera), identity.image)


def test_the_portrait_is_rendered_more_like_its_photograph(model: S3DNeRF, identity: Identity) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit_identity(model, identity, 40)
    assert measure(model, fitted) < 0.9 * measure(model, identity)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(plane.requires_grad for plane in fitted.appearance.planes)
    # Only the appearance of the source is fitted, not its motion.
    assert torch.equal(fitted.source_motion, identity.source_motion) and fitted.regions is identity.regions


def test_from_other_sides_it_stays_nearer_to_itself_than_it_moved_in_front(model: S3DNeRF, identity: Identity) -> None:
    fitted = fit_identity(model, identity, 40)
    changes = []
    for seed in range(4):
        camera = turn_camera(identity.camera, torch.Generator().manual_seed(100 + seed))
        with torch.no_grad():
            one, other = (render_still(model, each, camera).image for each in (identity, fitted))
        changes.append((one - other).abs().mean().item())
    assert 0 < sum(changes) / 4 < measure(model, identity).item()


def test_the_same_seed_fits_the_same(model: S3DNeRF, identity: Identity) -> None:
    one, same, other = (fit_identity(model, identity, 3, seed).appearance.detail for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_residuals_are_added(identity: Identity) -> None:
    planes = [torch.full_like(plane, 0.5) for plane in identity.appearance.planes]
    added = add_residuals(identity, planes, torch.ones_like(identity.appearance.detail))
    for before, after in zip(identity.appearance.planes, added.appearance.planes, strict=True):
        torch.testing.assert_close(after, before + 0.5)
    torch.testing.assert_close(added.appearance.detail, identity.appearance.detail + 1.0)
    assert added.appearance.context is identity.appearance.context


def test_turned_cameras_are_rotations_about_the_head() -> None:
    camera = Camera(torch.eye(3)[None], torch.tensor([0.7]), torch.tensor([[0.1, 0.2]]))
    turned = turn_camera(camera, torch.Generator().manual_seed(0))
    product = turned.rotation[0] @ turned.rotation[0].T
    torch.testing.assert_close(product, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.det(turned.rotation[0]).item() == pytest.approx(1.0, abs=1e-5)
    assert not torch.allclose(turned.rotation, camera.rotation, atol=1e-2)
    assert torch.equal(turned.center, camera.center) and torch.equal(turned.scale, camera.scale)


def test_less_than_no_steps_are_refused(model: S3DNeRF) -> None:
    with pytest.raises(UserError, match="^fit_steps -1: is too small"):
        TalkingHeadPipeline(model, fit_steps=-1)
