"""The shipped weights render the same frames as when they were made.

``golden/frames.safetensors`` holds a source (a public-domain photograph), three speech windows, three head poses, and
the frames that PyTorch operators rendered from them in float32, subsampled to every fourth pixel in both directions.
After a change that is meant to change frames, ``python tests/test_golden_frames.py`` renders them anew.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from s3dnerf import source_image
from s3dnerf.ops.backend import VARIABLE
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.source_image import make_background
from s3dnerf.structures import Camera, Source

GOLDEN = Path(__file__).parent / "golden" / "frames.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> TalkingHeadPipeline:
    return TalkingHeadPipeline.from_pretrained(device="cpu")


def render(pipeline: TalkingHeadPipeline, data: dict[str, Tensor]) -> Tensor:
    """Return frames ``[3, 3, S, S]`` of the three poses."""
    model = pipeline.model
    camera = Camera(data["rotation"], data["scale"], data["center"])
    image, matte = data["image"].float() / 255.0, data["matte"].float() / 255.0
    source = Source(image, camera, data["landmarks"], data["eyes"], matte)
    identity = model.prepare_identity(model.encode_identity(source))
    face = SimpleNamespace(image=data["image"][0].permute(1, 2, 0).numpy())
    background = make_background(pipeline.model, face, identity)
    identity = identity.expand(3)
    motion = model.prepare_motion(model.encode_speech(identity, data["windows"].float() / 32767.0))
    camera = Camera(data["frame_rotation"], data["frame_scale"], data["frame_center"])
    eyes = model.prepare_eyes(identity, data["frame_eyes"])
    return model(identity, motion, eyes, camera, background=background).image


def render_exactly(
    pipeline: TalkingHeadPipeline, data: dict[str, Tensor], backend: str, patch: pytest.MonkeyPatch
) -> Tensor:
    """Return every fourth pixel of the frames of a backend in float32."""
    patch.setenv(VARIABLE, backend)
    # The background is rendered in float32, too.
    patch.setattr(source_image, "mixed_precision", lambda device: torch.autocast("cpu", enabled=False))
    with torch.inference_mode():
        return render(pipeline, data)[:, :, ::4, ::4].contiguous()


@pytest.mark.parametrize("backend", ["pytorch", "auto"])
def test_frames_are_the_same(pipeline, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    data = load_file(GOLDEN)
    frames = render_exactly(pipeline, data, backend, monkeypatch)
    difference = (frames - data["frames"]).abs()
    assert difference.mean() < 1e-6
    assert difference.max() < 2e-5


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        kept = load_file(GOLDEN)
        frames = render_exactly(TalkingHeadPipeline.from_pretrained(device="cpu"), kept, "pytorch", patch)
        save_file({**kept, "frames": frames}, GOLDEN)
