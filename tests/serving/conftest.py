"""A server with a tiny model, and what is sent to it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient
from PIL import Image
from skimage.data import astronaut

import s3dnerf
from s3dnerf.encoded_portrait import EncodedPortrait
from s3dnerf.media.audio import read_speech
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.application import make_application
from s3dnerf.serving.marks import VideoMarks
from s3dnerf.serving.settings import ServerSettings
from s3dnerf.training.config import S3DNeRFConfig

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"
SETTINGS = {"upload_megabytes": 1, "sound_seconds": 4, "picture_megapixels": 1, "stop_seconds": 5}


class CachedPipeline(TalkingHeadPipeline):
    """Encodes each picture once for all tests, since faces are found slowly."""

    def __init__(self, model: S3DNeRF) -> None:
        super().__init__(model)
        self.calls = 0
        self.known: dict[tuple[tuple[bytes, ...], RenderOptions], EncodedPortrait] = {}

    def encode_portrait(self, image: object, options: RenderOptions, *rest: object) -> EncodedPortrait:
        self.calls += 1
        images = image if isinstance(image, list) else [image]
        contents = tuple(part if isinstance(part, bytes) else Path(part).read_bytes() for part in images)
        key = contents, replace(options, method="s3dnerf", pose="idle", turn=(0, 0), seed=0)
        if key not in self.known:
            self.known[key] = super().encode_portrait(image, options, *rest)
        return self.known[key]


@pytest.fixture(scope="session")
def tiny_pipeline(load_smoke: Callable[..., S3DNeRFConfig]) -> CachedPipeline:
    torch.manual_seed(0)
    return CachedPipeline(S3DNeRF(load_smoke().model))


@pytest.fixture(scope="session")
def picture() -> bytes:
    """Return a JPEG with one face."""
    file = io.BytesIO()
    Image.fromarray(astronaut()[:300, 60:400]).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """Return 1.2 s of speech."""
    return read_speech(SPEECH)[8000 : 8000 + 19200]


@pytest.fixture(scope="session")
def wav(sound: np.ndarray) -> bytes:
    return encode_wav(sound)


@pytest.fixture
def start(tiny_pipeline: TalkingHeadPipeline) -> Iterator[Callable[..., TestClient]]:
    """Start servers, with other limits."""
    clients: list[TestClient] = []

    def start(
        pipeline: TalkingHeadPipeline = tiny_pipeline,
        page: bool = False,
        marks: VideoMarks | None = None,
        **limits: int,
    ) -> TestClient:
        settings = ServerSettings(**{**SETTINGS, **limits})
        client = TestClient(make_application(pipeline, settings, page=page, marks=marks))
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)
        assert not client.app.state.server.storage.folder.exists()


@pytest.fixture
def client(start: Callable[..., TestClient]) -> TestClient:
    return start()


def encode_wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def list_files(client: TestClient) -> list[Path]:
    return list(client.app.state.server.storage.folder.iterdir())
