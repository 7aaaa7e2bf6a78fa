"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from s3dnerf.data.batch import Batch
    from s3dnerf.training import S3DNeRFConfig

# Tests never ask the network; set before any library reads it.
os.environ["HF_HUB_OFFLINE"] = "1"

REAL_CLIPS = ("grid_uC_lrwp9a", "grid_uB_lwbsza")
"""Two real clips of three seconds: the first of a train person, the second of a val person."""
SLOW_MODULES = (
    *("test_weights", "test_end_to_end", "test_pipeline", "test_training_guide", "test_examples", "test_interruption"),
    *("test_hub", "test_outputs", "test_fitting", "test_cli", "test_in_memory"),
    *("data/test_prepare", "data/test_dataset", "ops/test_build", "ops/test_field", "ops/test_convolution"),
    *("ops/test_deformation", "ops/test_triplane", "training/test_s3dnerf", "training/test_mouth_interior"),
    *("training/test_sync", "training/test_sync_offsets", "training/test_perceptual", "training/test_adversarial"),
    *("training/test_processes", "training/test_motion", "test_speech_motion", "models/fd2talk/test_shipped_motion"),
    *("training/test_frames", "models/fd2talk/test_frames", "models/fd2talk/test_shipped_frames"),
    *("evaluation/test_ablation", "evaluation/test_benchmark", "evaluation/test_evaluate", "evaluation/test_networks"),
    *("evaluation/test_motion_table", "evaluation/test_audio_driven", "training/test_motion_ablation"),
    *("evaluation/test_motion_table", "evaluation/test_score", "evaluation/test_benchmark_method"),
    *("evaluation/test_tracking", "evaluation/test_sync_discriminator", "evaluation/test_sync_offsets"),
    *(
        "models/s3dnerf/test_deformation_variants",
        "face/test_search",
        "face/test_tracker",
        "face/test_driving_video",
        "media/test_video",
    ),
    *("serving/test_render_routes", "serving/test_websocket", "serving/test_webrtc", "serving/test_process"),
    *("serving/test_page", "serving/test_hostile_clients", "live/test_session", "evaluation/test_motion_theval"),
    *("test_several_images", "test_rendered_controls", "test_gpu_check", "test_make_weights", "test_portability"),
    *("training/test_eye_interior", "evaluation/test_model_card", "test_check_metrics", "test_reenactment"),
)
"""Modules whose tests `make test-fast` leaves out."""
REAL_DATA = {"shared_data", "real_clips_folder", "real_prepared_clips"}
"""Fixtures that need the real clips."""
DRAWN_SIZE = 64
DRAWN_CLIPS = (
    # name, person, split, sync, frames, seed
    ("ann_0", "ann", "train", "ok", 40, 0),
    ("ann_1", "ann", "train", "none", 12, 1),
    ("ben_0", "ben", "train", "corrected", 30, 2),
    ("cid_0", "cid", "val", "ok", 30, 3),
)
SPEAKING_PEOPLE = {"val": ("ida", "jim", "kit"), "train": ("lea", "max", "noa", "oda", "pia")}
SPEAKING_FRAMES = 126


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow, as in need of the real clips, or as in need of a GPU, and put files with slow ones first.

    Workers take files in this order, so none of them is left with a slow file when the others have finished.
    """
    for item in items:
        module = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        if module in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)
        if REAL_DATA & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.data)
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("library") == "cuda":
            item.add_marker(pytest.mark.gpu)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed PyTorch, so that what a test draws does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, sources and recordings: S3DNERF_TEST_DATA, or one beside the repository."""
    folder = Path(os.environ.get("S3DNERF_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the real clips are not there (S3DNERF_TEST_DATA names their folder; looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: tiny models gain nothing from more, and sums come out the same everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def load_smoke(one_thread: None) -> Callable[..., S3DNeRFConfig]:
    """Reads the settings of configs/smoke.yaml (a tiny model), changed by command line words."""
    from s3dnerf.config import load_config
    from s3dnerf.training import S3DNeRFConfig

    return lambda *words: load_config(S3DNeRFConfig, "smoke.yaml", ["--train.precision", "float32", *words])


@pytest.fixture(scope="session")
def speech() -> Tensor:
    """The shipped sentence at the normal level, ``[samples]``."""
    import torch

    import s3dnerf
    from s3dnerf.media.audio import measure_level, read_speech, speech_gain

    sound = read_speech(Path(s3dnerf.__file__).parent / "assets" / "speech.wav")
    return torch.from_numpy(sound * np.float32(speech_gain(measure_level([sound]))))


@pytest.fixture(scope="session")
def drawn_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared clips of cartoon people, two of train and one of val, whose landmarks, pixels and sound agree."""
    root = tmp_path_factory.mktemp("drawn_clips")
    for name, person, split, sync, frames, seed in DRAWN_CLIPS:
        save_drawn_clip(root / name, person, split, sync, frames, seed)
    return root


@pytest.fixture(scope="session")
def speaking_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared clips of five seconds of cartoon people, three of val and five of train, who all speak."""
    root = tmp_path_factory.mktemp("speaking_clips")
    people = [(split, person) for split, names in SPEAKING_PEOPLE.items() for person in names]
    for seed, (split, person) in enumerate(people):
        save_drawn_clip(root / f"{person}_0", person, split, "ok", SPEAKING_FRAMES, seed)
    return root


@pytest.fixture(scope="session")
def drawn_batch(drawn_clips: Path, load_smoke: Callable[..., S3DNeRFConfig]) -> Batch:
    """A batch of the cartoon people, as big as configs/smoke.yaml says. Not to be changed in place."""
    from s3dnerf.data.dataset import TalkingFaceDataset

    config = load_smoke("--data.root", str(drawn_clips), "--data.augment", "false")
    shape = (config.model.image_size, config.model.audio.samples, config.train.batch_size)
    return TalkingFaceDataset(config.data, "train", *shape, seed=0)[0]


@pytest.fixture(scope="session")
def real_clips_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of two real clips with their sound, and of the manifest that tells their people apart."""
    folder = tmp_path_factory.mktemp("real_videos")
    for name in REAL_CLIPS:
        for suffix in (".mp4", ".wav"):
            shutil.copy(shared_data / "clips" / f"{name}{suffix}", folder)
    shutil.copy(shared_data / "MANIFEST.csv", folder)
    return folder


@pytest.fixture(scope="session")
def real_prepared_clips(real_clips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two real clips, prepared by the command line at 64 x 64 pixels."""
    from s3dnerf import cli

    out = tmp_path_factory.mktemp("real_prepared")
    words = ["--videos", str(real_clips_folder), "--manifest", str(real_clips_folder / "MANIFEST.csv")]
    assert cli.main(["prepare", *words, "--out", str(out), "--size", str(DRAWN_SIZE)]) == 0
    return out


def save_drawn_clip(folder: Path, person: str, split: str, sync: str, frames: int, seed: int) -> None:
    """Draw a cartoon face that turns, nods, blinks and talks; what it says is noise as loud as its mouth is open."""
    from scipy.spatial.transform import Rotation

    from s3dnerf.data.clip import Clip, save_clip
    from s3dnerf.face.camera import HeadPose, load_canonical_face, project
    from s3dnerf.face.crop import CropBox
    from s3dnerf.face.points import KEPT_POINTS, LID_PAIRS_LEFT, LID_PAIRS_RIGHT, LIPS_INNER, LIPS_OUTER
    from s3dnerf.face.regions import measure_eye_openness, measure_lip_opening

    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 25
    opening = 0.12 * np.sin(2 * np.pi * 1.7 * time + seed) ** 2
    face = load_canonical_face()[KEPT_POINTS] * rng.uniform(0.93, 1.07, 3)
    points = np.repeat(face[None], frames, axis=0)
    lower = np.searchsorted(KEPT_POINTS, [*LIPS_INNER[1:10], *LIPS_OUTER[1:10]])
    points[:, lower, 1] -= opening[:, None]
    upper, lower = np.searchsorted(KEPT_POINTS, np.array(LID_PAIRS_LEFT + LID_PAIRS_RIGHT).T)
    closing = 0.6 * np.sin(2 * np.pi * 0.9 * time + seed) ** 8
    points[:, upper, 1] -= closing[:, None] * (points[:, upper, 1] - points[:, lower, 1])

    turns = np.stack([0.3 * np.sin(2.0 * time + seed), 0.1 * np.cos(3.0 * time)], axis=1)
    center = np.stack([0.1 * np.sin(1.5 * time), 0.05 * np.cos(time)], axis=1)
    scale = np.full(frames, 0.75, np.float32)
    rotation = Rotation.from_euler("yx", turns).as_matrix().astype(np.float32)
    pose = HeadPose(rotation, scale, center.astype(np.float32))
    landmarks = project(points, pose).astype(np.float32)

    loudness = np.interp((np.arange(frames * 640) + 0.5) / 640, np.arange(frames) + 0.5, opening)
    speech = (loudness * rng.standard_normal(frames * 640)).astype(np.float32)
    clip = Clip(
        path=folder,
        id=folder.name,
        person=person,
        split=split,
        sync=sync,
        frames=frames,
        size=DRAWN_SIZE,
        crop=CropBox(0.0, 0.0, float(DRAWN_SIZE)),
        landmarks=landmarks,
        pose=pose,
        eye_openness=measure_eye_openness(landmarks),
        lip_opening=measure_lip_opening(landmarks, pose),
        valid=np.ones(frames, bool),
        has_speech=sync != "none",
    )
    colors = rng.uniform(60, 250, (5, 3))
    pictures = (draw_face(one, colors) for one in landmarks)
    save_clip(clip, pictures, speech if clip.has_speech else None)


def draw_face(landmarks: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """A cartoon ``uint8 [64, 64, 3]`` of kept ``landmarks [P, 3]``; colors of background, skin, eyes, brows, lips."""
    from s3dnerf.face.points import (
        BROW_LEFT,
        BROW_RIGHT,
        EYE_LEFT,
        EYE_RIGHT,
        FACE_OVAL,
        IRIS_LEFT,
        IRIS_RIGHT,
        LIPS_INNER,
        LIPS_OUTER,
        select_points,
    )

    slope = np.linspace(0.5, 1.0, DRAWN_SIZE)[:, None, None]
    image = (slope * colors[0] * np.ones((1, DRAWN_SIZE, 1))).astype(np.uint8)
    pixels = (landmarks[:, :2] + 1) * (DRAWN_SIZE / 2) - 0.5
    black = np.zeros(3)
    layers = [(FACE_OVAL, colors[1]), (EYE_LEFT, colors[2]), (EYE_RIGHT, colors[2]), (IRIS_LEFT[1:], black)]
    layers += [(IRIS_RIGHT[1:], black), (BROW_LEFT, colors[3]), (BROW_RIGHT, colors[3])]
    for numbers, color in [*layers, (LIPS_OUTER, colors[4]), (LIPS_INNER, black)]:
        outline = np.round(select_points(pixels, numbers) * 16).astype(np.int32)
        cv2.fillPoly(image, [outline], color.tolist(), cv2.LINE_AA, shift=4)
    return image
