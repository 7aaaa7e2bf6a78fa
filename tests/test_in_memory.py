"""The pipeline with inputs and outputs in memory, and with a transparent background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from s3dnerf import cli
from s3dnerf.errors import UserError
from s3dnerf.face import portrait
from s3dnerf.face.search import detect_faces
from s3dnerf.media.audio import write_wav
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions
from s3dnerf.talking_video import TalkingVideo
from s3dnerf.training.config import S3DNeRFConfig

SIDE, RATE, FRAMES = 64, 16000, 6
PICTURE = np.ascontiguousarray(astronaut()[:300, 60:400])
# 16-bit samples, so that a WAV file holds them exactly.
SOUND = np.rint(6000 * np.random.default_rng(0).standard_normal(RATE * FRAMES // 25)).astype(np.int16)


@pytest.fixture(scope="module", autouse=True)
def remember_faces() -> Iterator[None]:
    """Detect the face of each image once, because detection dominates the time of these tests."""
    found: dict[bytes, list[np.ndarray]] = {}

    def detect(image: np.ndarray, is_turned: bool = False) -> list[np.ndarray]:
        key = image.tobytes() + bytes([is_turned])
        if key not in found:
            found[key] = detect_faces(image, is_turned=is_turned)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portrait, "detect_faces", detect)
        yield


@pytest.fixture(scope="module")
def speaker(load_smoke: Callable[..., S3DNeRFConfig]) -> TalkingHeadPipeline:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    model = S3DNeRF(load_smoke().model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return TalkingHeadPipeline(model)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_image(folder / "portrait.png", PICTURE)
    write_wav(folder / "speech.wav", SOUND / 32768)
    return folder


@pytest.fixture(scope="module")
def from_files(speaker: TalkingHeadPipeline, files: Path) -> TalkingVideo:
    return speaker(files / "portrait.png", files / "speech.wav")


@pytest.fixture(scope="module")
def transparent(speaker: TalkingHeadPipeline) -> TalkingVideo:
    return speaker(PICTURE, (SOUND, RATE), background="transparent", pose="static")


def test_inputs_in_memory_give_the_frames_of_files(
    speaker: TalkingHeadPipeline, files: Path, from_files: TalkingVideo
) -> None:
    expected = np.stack(list(from_files))
    assert expected.shape == (FRAMES, SIDE, SIDE, 3)
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1).float() / 255
    bytes_of_files = [(files / name).read_bytes() for name in ("portrait.png", "speech.wav")]
    for inputs in (bytes_of_files, (tensor, (torch.from_numpy(SOUND / np.float32(32768)), RATE))):
        video = speaker(*inputs)
        np.testing.assert_array_equal(np.stack(list(video)), expected)
        assert video.inputs == ()


def test_frames_are_arrays_tensors_or_images(from_files: TalkingVideo) -> None:
    arrays, tensors, images = (list(from_files.iterate(kind)) for kind in ("np", "pt", "pil"))
    assert all(isinstance(image, Image.Image) for image in images)
    assert all(tensor.shape == (3, SIDE, SIDE) and tensor.dtype == torch.float32 for tensor in tensors)
    assert {tensor.device for tensor in tensors} == {from_files.device}
    for array, tensor, image in zip(arrays, tensors, images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), array)
        np.testing.assert_array_equal(np.rint(tensor.permute(1, 2, 0).numpy() * 255), array)
    with pytest.raises(UserError, match="^output_type jax: is not known"):
        from_files.iterate("jax")


def test_tensors_of_another_size_are_those_of_the_arrays(speaker: TalkingHeadPipeline) -> None:
    video = speaker(PICTURE, (SOUND, RATE), size=96)
    array, tensor = next(iter(video)), next(video.iterate("pt"))
    np.testing.assert_array_equal(np.rint(tensor.permute(1, 2, 0).numpy() * 255), array)


def test_videos_in_memory_are_saved_with_their_sound(transparent: TalkingVideo, tmp_path: Path) -> None:
    info = probe_video(transparent.save(tmp_path / "a.webm"))
    assert (info.width, info.height, info.has_audio) == (SIDE, SIDE, True)
    transparent.save(tmp_path / "frames" / "%03d.png")
    saved = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "frames").iterdir())]
    np.testing.assert_array_equal(np.stack(saved), np.stack(list(transparent)))
    with pytest.raises(UserError, match="has no transparency"):
        transparent.save(tmp_path / "a.mp4")


def test_a_transparent_background_has_the_alpha_of_the_matte(
    speaker: TalkingHeadPipeline, transparent: TalkingVideo
) -> None:
    frame = next(iter(transparent)).astype(int)
    assert frame.shape == (SIDE, SIDE, 4)
    middle = slice(SIDE // 2 - 4, SIDE // 2 + 4)
    assert frame[middle, middle, 3].min() >= 250 and frame[0, 0, 3] == 0
    assert (frame[frame[..., 3] == 0] == 0).all()
    # Over a color, it is what the pipeline renders over this color.
    green = next(iter(speaker(PICTURE, (SOUND, RATE), background="#00ff00", pose="static"))).astype(int)
    alpha = frame[..., 3:] / 255
    np.testing.assert_allclose(frame[..., :3] * alpha + np.array([0, 255, 0]) * (1 - alpha), green, atol=2)


def test_the_body_stays_at_the_border_of_what_is_pasted(speaker: TalkingHeadPipeline) -> None:
    options = (RenderOptions(framing=framing) for framing in ("crop", "picture"))
    crop, pasted = (speaker.encode_portrait(PICTURE, chosen).identity for chosen in options)
    assert crop is not None and pasted is not None
    assert crop.body_reach is None and pasted.body_reach is not None
    assert 0.0 <= pasted.body_reach.min() < 0.1 and pasted.body_reach.max() == 1.0
    assert pasted.person[..., -1, :].max() == 0.0 and (pasted.person <= crop.person).all()


def test_the_background_of_a_whole_picture_stays(speaker: TalkingHeadPipeline) -> None:
    for background in ("transparent", "green"):
        with pytest.raises(UserError, match=f"^background {background}: cannot replace that of a whole picture"):
            speaker(PICTURE, (SOUND, RATE), framing="picture", background=background)


@pytest.mark.parametrize(
    ("image", "audio", "message"),
    [
        (PICTURE, (SOUND * 0, RATE), "audio: is silent"),
        (PICTURE, (SOUND[:100], RATE), "audio: is too short"),
        (PICTURE, b"no sound", "audio: is text"),
        (np.zeros((80, 80, 3), np.uint8), (SOUND, RATE), "image: shows no face"),
        (PICTURE / 1.0, (SOUND, RATE), "image: has floats outside 0 to 1"),
        ([[1, 2]], (SOUND, RATE), "image: is of type list"),
        ("no such file.png", (SOUND, RATE), "no such file.png: does not exist"),
    ],
)
def test_unusable_inputs_are_named_by_their_argument(
    image: object, audio: object, message: str, speaker: TalkingHeadPipeline
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        speaker(image, audio)


def test_the_command_line_names_options_and_checks_outputs_before_it_loads_a_model(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TalkingHeadPipeline, "from_pretrained", lambda *given: pytest.fail("a model was loaded"))
    words = ["render", "--image", str(files / "portrait.png"), "--audio", str(files / "speech.wav"), "--out"]
    for more, message in (
        (["a.mp4", "--background", "transparent"], "a.mp4: has no transparency"),
        (["a.webm", "--codec", "hevc"], "a.webm: holds no HEVC"),
        (["a.png"], "a.png: is the name of one picture"),
        (["a.mp4", "--background", "greenish"], "--background greenish: is not a color"),
        (["a.mp4", "--background", "green", "--framing", "picture"], "--background green: cannot replace"),
        (["a.mp4", "--max-side", "16"], "--max-side 16: is too small"),
    ):
        assert cli.main([*words, str(tmp_path / more[0]), *more[1:]]) == 2
        assert message in capsys.readouterr().err
