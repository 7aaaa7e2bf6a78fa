"""The shipped weights, on a source and a recording that they were not trained on."""

from __future__ import annotations

from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import Tensor

import s3dnerf
from s3dnerf.face.camera import fit_head_pose
from s3dnerf.face.landmarks import to_pixels
from s3dnerf.face.portrait import Face, find_face
from s3dnerf.face.regions import measure_lip_opening
from s3dnerf.face.search import detect_faces
from s3dnerf.face.video import track_landmarks
from s3dnerf.media.audio import count_frames, cut_speech_window, measure_level, read_speech, speech_gain
from s3dnerf.media.image import write_image
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.models.s3dnerf.mouth_interior import MouthColors, measure_opening
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.rendering.opening import Opening
from s3dnerf.source_image import make_background, make_source
from s3dnerf.talking_video import PhaseTimer

SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"


@pytest.fixture(scope="module")
def shipped(one_thread: None) -> TalkingHeadPipeline:
    return TalkingHeadPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "astronaut.png"
    write_image(path, astronaut())
    return path


@pytest.fixture(scope="module")
def face(shipped: TalkingHeadPipeline, portrait: Path) -> Face:
    return find_face(portrait, shipped.model.config.image_size)


def read_windows(shipped: TalkingHeadPipeline, path: Path = SPEECH) -> np.ndarray:
    """Return windows of a recording, by default the shipped one, at the normal level."""
    speech = read_speech(path)
    speech = speech * np.float32(speech_gain(measure_level([speech])))
    return cut_speech_window(speech, np.arange(count_frames(len(speech))), shipped.model.config.audio.samples)


def place_lips(shipped: TalkingHeadPipeline, face: Face, windows: np.ndarray) -> np.ndarray:
    """Return the lip opening that the model produces, in head units, one value for each window."""
    model, source = shipped.model, make_source(face, shipped.device)
    with torch.inference_mode():
        identity = model.encode_identity(source)

        def measure(chunk: Tensor) -> Tensor:
            repeated = identity.repeat(len(chunk))
            motion = model.encode_speech(repeated, chunk)
            codes = model.drive(repeated, motion, repeated.eyes, repeated.camera)
            return measure_opening(model.locate_inner_lips(repeated, model.deform_field(repeated, codes)))

        return torch.cat([measure(chunk) for chunk in torch.from_numpy(windows).split(25)]).numpy()


def test_frames_are_of_the_size_that_is_documented(shipped: TalkingHeadPipeline) -> None:
    assert shipped.model.config.image_size == 256


def test_lips_move_with_speech(shipped: TalkingHeadPipeline, face: Face) -> None:
    opening = place_lips(shipped, face, read_windows(shipped))
    # One hundredth of a head unit is slightly more than a millimeter.
    assert opening.std() > 0.012 and np.ptp(opening) > 0.06


def test_lips_follow_speech_as_those_of_a_real_stranger_do(
    shipped: TalkingHeadPipeline, shared_data: Path, tmp_path: Path
) -> None:
    video = shared_data / "clips" / "hdtf_AmyKlobuchar_0.mp4"
    write_image(tmp_path / "first.png", next(stream_frames(video)))
    face = find_face(tmp_path / "first.png", shipped.model.config.image_size)
    made = place_lips(shipped, face, read_windows(shipped, video.with_suffix(".wav")))
    info = probe_video(video)
    points = track_landmarks(video, (info.height, info.width)).landmarks
    real = measure_lip_opening(points, fit_head_pose(points))
    assert np.corrcoef(made[: len(real)], real)[0, 1] > 0.5
    # Speech at another time does not match.
    assert np.corrcoef(made[25 : len(real)], real[:-25])[0, 1] < 0.3


def render_windows(shipped: TalkingHeadPipeline, face: Face, windows: np.ndarray) -> np.ndarray:
    """Render frames of a static head, one for each window: ``uint8 [T, S, S, 3]``."""
    identity = shipped.encode_identity(face, seed=0)
    with torch.inference_mode():
        motion = shipped.model.encode_speech(identity.repeat(len(windows)), torch.from_numpy(windows))
    poses, eyes = repeat(face.pose, len(windows)), repeat(face.eyes)
    backdrop = make_background(shipped.model, face, identity)
    return np.stack(
        list(shipped.render_frames(identity, zip(motion, poses, eyes, strict=False), PhaseTimer(), backdrop))
    )


def see_opening(frame: np.ndarray) -> float:
    """Return the lip opening in a frame, as detected by the face tracker."""
    points = to_pixels(detect_faces(frame)[0], frame.shape[:2])[None]
    return float(measure_lip_opening(points, fit_head_pose(points))[0])


def test_in_silence_lips_close_as_far_as_they_do_in_speech_and_nothing_else_moves(
    shipped: TalkingHeadPipeline, face: Face
) -> None:
    speech = read_windows(shipped)[::25]
    rng = np.random.default_rng(0)
    faint = (1e-4 * rng.standard_normal((1, speech.shape[1]))).astype(np.float32)
    frames = render_windows(shipped, face, np.concatenate([np.zeros_like(faint), faint, speech]))
    opening = np.array([see_opening(frame) for frame in frames])
    # The person in this source smiles with open lips, and they stay slightly open.
    assert opening[:2].max() < 0.85 * np.median(opening[2:])
    # Codes that the deformation has not been trained on would tear the chin.
    still = np.abs(frames.astype(int) - face.image).mean(axis=(1, 2, 3))
    assert still[:2].max() < 1.1 * still[2:].max()
    assert still[:2].max() < 4.0


def test_between_lips_that_part_there_are_teeth_and_darkness(shipped: TalkingHeadPipeline) -> None:
    # A mouth half as wide as half the face, open by an eighth of a head unit, of a person with closed lips.
    height, half_width = 0.12, 0.26
    across, down = torch.meshgrid(torch.linspace(-0.7, 0.7, 30), torch.linspace(0.05, 0.95, 12), indexing="xy")
    edge = height * (1.0 - across.square())
    upper, lower = (down * edge).flatten()[None], ((1.0 - down) * edge).flatten()[None]
    sizes = torch.tensor([2 * half_width]), torch.tensor([height])
    places = across.flatten()[None]
    opening = Opening(torch.ones_like(upper), places, upper, lower, upper, half_width * places, *sizes)
    for skin in (torch.tensor([[0.85, 0.65, 0.55]]), torch.tensor([[0.45, 0.3, 0.25]])):
        lips, seam = skin * torch.tensor([[0.9, 0.7, 0.75]]), skin * torch.tensor([[0.6, 0.4, 0.45]])
        tones = MouthColors(skin, lips, seam, torch.zeros(1))
        with torch.inference_mode():
            colors = shipped.model.mouth_interior(opening, tones)
        light = colors.mean(1) / skin.mean()
        # Darker than skin on average, as behind real lips, and brightest at the teeth.
        assert light.mean() < 0.6 and light.min() < 0.35 and light.max() > 1.5 * light.mean()
        # Upper teeth: it is brightest in the upper half, in the middle.
        row, column = divmod(light.argmax().item(), 30)
        assert row < 8 and 8 < column < 22


def test_the_face_stays_itself(shipped: TalkingHeadPipeline, face: Face, portrait: Path) -> None:
    video = shipped(portrait, SPEECH, pose="static", blink="off")
    frames = np.stack(list(islice(video, 12))).astype(float)
    error = np.square(frames - face.image).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).min() > 26
    # Nothing above the nose depends on speech.
    upper = np.abs(frames - frames[:1])[:, :90]
    lower = np.abs(frames - frames[:1])[:, 120:200, 80:176]
    assert upper.mean() < 0.5 * lower.mean()
