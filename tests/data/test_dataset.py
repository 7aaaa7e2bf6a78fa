"""Training batches are functions of seed and step, and everything in them is consistent."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s3dnerf.data.batch import Batch, BatchContent
from s3dnerf.data.clip import INFO_FILE, Clip
from s3dnerf.data.config import DataConfig
from s3dnerf.data.dataset import TalkingFaceDataset, select_held_out
from s3dnerf.data.tracks import ClipTrack
from s3dnerf.errors import UserError
from s3dnerf.face.points import IRIS_LEFT, IRIS_RIGHT, KEPT_POINTS
from s3dnerf.media.audio import cut_speech_window, measure_level, speech_gain
from s3dnerf.media.image import resize_image
from s3dnerf.ops.image import downsample, warp_image
from s3dnerf.rendering.rays import project_points
from s3dnerf.training.batch_loader import load_batches

SIZE, WINDOW = 64, 7680


def list_tensors(value: object, name: str = "batch") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    found = {}
    for part in fields(value) if is_dataclass(value) else ():
        found |= list_tensors(getattr(value, part.name), f"{name}.{part.name}")
    return found


def are_equal(one: Batch, other: Batch) -> bool:
    tensors, others = list_tensors(one), list_tensors(other)
    assert tensors.keys() == others.keys() and len(tensors) > 10
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_a_batch_is_a_pure_function_of_seed_and_step(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    one, other = make_dataset(), make_dataset()
    batches = [one[step] for step in (5, 6, 7)]
    assert are_equal(other[7], batches[2])
    assert are_equal(one[5], batches[0])
    assert not are_equal(batches[0], batches[1])
    assert not are_equal(make_dataset(seed=1)[5], batches[0])


@pytest.fixture
def spawned() -> Iterator[None]:
    """Start worker processes afresh instead of as copies, as on macOS and Windows."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(method, force=True)


def test_worker_processes_that_start_afresh_make_the_same_batches(
    make_dataset: Callable[..., TalkingFaceDataset], spawned: None
) -> None:
    dataset = make_dataset()
    batches = list(load_batches(dataset, range(3, 5), workers=1, pin_memory=False))
    assert are_equal(batches[0], dataset[3]) and are_equal(batches[1], dataset[4]) and len(batches) == 2


def test_cached_pixels_change_nothing(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    assert are_equal(make_dataset(cache_gb=0)[2], make_dataset()[2])


def test_shapes_of_a_batch(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    points = len(KEPT_POINTS)
    shapes = {name: tuple(value.shape) for name, value in list_tensors(make_dataset()[0]).items()}
    assert shapes["batch.images.sources.image"] == (2, 3, SIZE, SIZE)
    assert shapes["batch.images.frames.image"] == (4, 3, SIZE, SIZE)
    assert shapes["batch.images.frames.landmarks"] == shapes["batch.images.frames.displacement"] == (4, points, 3)
    assert shapes["batch.images.frames.speech"] == (4, WINDOW)
    assert shapes["batch.speech.sources.image"] == (2, 3, SIZE, SIZE)
    assert shapes["batch.speech.frames.landmarks"] == (16, points, 3)
    assert shapes["batch.speech.frames.speech"] == (16, WINDOW)
    assert shapes["batch.speech.frames.camera.rotation"] == (16, 3, 3)
    assert shapes["batch.speech.frames.eyes"] == (16, 2)
    assert "batch.speech.frames.image" not in shapes
    assert shapes["batch.images.frames.flow"] == (4, 2, SIZE // 2, SIZE // 2)
    assert shapes["batch.images.frames.confidence"] == (4, 1, SIZE // 2, SIZE // 2)
    assert "batch.speech.frames.flow" not in shapes
    assert shapes["batch.images.sources.matte"] == (2, 1, SIZE // 2, SIZE // 2)


def test_mattes_are_mirrored_with_their_portraits(
    make_dataset: Callable[..., TalkingFaceDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_green(clip: Clip, indices: np.ndarray) -> np.ndarray:
        return np.stack([resize_image(frame, SIZE // 2)[..., 1] for frame in clip.read_frames(indices)])

    # The green channel of the frames stands in for the mattes; it must stay aligned with the image.
    monkeypatch.setattr(Clip, "read_mattes", read_green)
    dataset = make_dataset()
    for step in range(4):
        sources = dataset[step].images.sources
        green = downsample(sources.image[:, 1:2], 2).flatten(1)
        for matte, expected in zip(sources.matte.flatten(1), green, strict=True):
            # Colors are augmented, so that only the pattern is the same.
            assert torch.corrcoef(torch.stack([matte, expected]))[0, 1] > 0.95


def test_pixels_and_landmarks_are_aligned(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    # The irises of the drawn faces are black, so colors at their landmarks must be dark, mirrored or not.
    rows = [np.searchsorted(KEPT_POINTS, iris[0]) for iris in (IRIS_LEFT, IRIS_RIGHT)]
    dataset = make_dataset()
    for step in range(4):
        frames = dataset[step].images.frames
        places = project_points(frames.landmarks[:, rows], frames.camera)[..., :2]
        colors = torch.nn.functional.grid_sample(frames.image, places[:, None], align_corners=False)
        assert colors.mean(dim=1).max() < 0.45
        assert frames.image.mean() > 0.2


def test_frames_have_the_identity_of_their_portrait(plain: TalkingFaceDataset) -> None:
    # Each drawn identity has its own background, which the top left corner shows.
    for step in range(6):
        batch = plain[step].images
        corners = batch.sources.image[:, :, 1, 1].repeat_interleave(batch.frames_per_source, 0)
        torch.testing.assert_close(batch.frames.image[:, :, 1, 1], corners, atol=0.05, rtol=0)


def test_the_flow_of_a_batch_leads_to_the_portrait(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    dataset = make_dataset(size=128)
    without, followed = 0.0, 0.0
    for step in range(4):
        batch = dataset[step].images
        frames = batch.frames
        real = downsample(frames.image, 2)
        sources = downsample(batch.sources.image.repeat_interleave(batch.frames_per_source, 0), 2)
        without += ((sources - real).abs() * frames.confidence).mean().item()
        followed += ((warp_image(sources, frames.flow) - real).abs() * frames.confidence).mean().item()
    assert followed < 0.5 * without


def test_frames_are_a_run_at_regular_steps(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    dataset = make_dataset(augment=False, run_every=3)
    for step in range(7):
        batch = dataset[step].images
        is_run = step in (2, 5)
        assert len(batch.sources.eyes) == (1 if is_run else 2)
        assert batch.frames_per_source == (5 if is_run else 2)
        if is_run:
            # Each window starts 640 samples after the previous one, and none is silent.
            speech = batch.frames.speech
            assert batch.frames.in_sync.all() and speech.abs().amax(dim=1).min() > 0
            assert torch.equal(speech[1:, :-640], speech[:-1, 640:])
    assert all(make_dataset(run_every=0)[step].images.frames_per_source == 2 for step in range(6))


def test_portraits_come_with_their_displacement(plain: TalkingFaceDataset, tracks: list[ClipTrack]) -> None:
    batch = plain[0]
    mean_faces = torch.from_numpy(np.stack([track.mean_face for track in tracks]))
    for sources, displacement in (
        (batch.images.sources, batch.images.source_displacement),
        (batch.speech.sources, batch.speech.source_displacement),
    ):
        distance = ((sources.landmarks - displacement)[:, None] - mean_faces).abs().amax(dim=(2, 3))
        assert distance.amin(dim=1).max() < 1e-5


def test_sequences_without_augmentation_have_the_speech_windows_of_the_clip(
    plain: TalkingFaceDataset, tracks: list[ClipTrack]
) -> None:
    track = next(track for track in tracks if track.clip.id == "ann_0")
    speech = track.clip.read_speech()
    windows = speech_gain(measure_level([speech])) * cut_speech_window(speech, np.arange(track.clip.frames), WINDOW)
    found = 0
    for step in range(6):
        frames = plain[step].speech.frames
        for start in (0, 8):
            first = np.flatnonzero(np.abs(windows - frames.speech[start].numpy()).max(axis=1) < 1e-6)
            if len(first):
                found += 1
                np.testing.assert_allclose(
                    frames.speech[start : start + 8], windows[first[0] + np.arange(8)], atol=1e-6
                )
                expected = track.landmarks[first[0] + np.arange(8)]
                np.testing.assert_allclose(frames.landmarks[start : start + 8], expected, atol=1e-6)
    assert found >= 3


def test_val_identities_are_not_in_the_train_split(
    make_dataset: Callable[..., TalkingFaceDataset], plain: TalkingFaceDataset
) -> None:
    val = make_dataset("val", augment=False)
    assert plain.people == ["ann", "ben"]
    assert val.people == ["cid"] and val.speakers.people.tolist() == [b"cid"]


def test_silent_clips_have_frames_and_no_usable_speech(plain: TalkingFaceDataset, tracks: list[ClipTrack]) -> None:
    assert [plain.clips.index.get_id(row) for row in plain.speakers.rows] == ["ann_0", "ben_0"]
    track = next(track for track in tracks if track.clip.id == "ann_1")
    view = plain.read_frame_arrays(track, np.array([2, 5]), SIZE, with_speech=True)
    assert not view.speech.any() and not view.in_sync.any()
    assert view.pixels.std() > 10
    speaking = plain.read_frame_arrays(tracks[0], np.array([2, 5]), SIZE, with_speech=True)
    assert speaking.speech.any() and speaking.in_sync.all()


def test_a_batch_holds_what_its_step_needs(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    wanted = [BatchContent(SIZE), BatchContent(32), BatchContent(32, images=False), BatchContent(SIZE, speech=False)]
    dataset, whole = make_dataset(content=lambda step: wanted[step]), make_dataset()
    assert are_equal(dataset[0], whole[0])
    assert dataset[1].images.frames.image.shape[-1] == dataset[1].speech.sources.image.shape[-1] == 32
    # The same frames are sampled at every size.
    torch.testing.assert_close(dataset[1].images.frames.landmarks, whole[1].images.frames.landmarks)
    assert dataset[2].images is None and dataset[2].speech.sources.image.shape[-1] == 32
    assert dataset[3].speech is None and are_equal(dataset[3].images, whole[3].images)


def test_held_out_people_are_of_those_with_speech_and_stay_the_same(
    make_dataset: Callable[..., TalkingFaceDataset], drawn_clips: Path, tmp_path: Path
) -> None:
    config = DataConfig(root=drawn_clips, sequence_frames=8, held_out_people=1)
    (person,) = held_out = select_held_out(config)
    assert person in {"ann", "ben"} and select_held_out(config) == held_out
    assert set(make_dataset(select=lambda name: name not in held_out).people) == {"ann", "ben"} - held_out
    assert set(make_dataset(select=held_out.__contains__).people) == held_out
    # Of two people, a tenth is nobody.
    assert select_held_out(DataConfig(root=drawn_clips, sequence_frames=8)) == frozenset()
    with pytest.raises(UserError, match="held_out_people.*only 2"):
        select_held_out(DataConfig(root=drawn_clips, sequence_frames=8, held_out_people=2))
    # People without usable speech are not chosen: no clip is as long as these sequences.
    assert select_held_out(DataConfig(root=drawn_clips, sequence_frames=900, held_out_people=1)) == frozenset()


def test_images_are_resized_to_the_training_size(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    small, stored = make_dataset(size=32, augment=False)[0], make_dataset(augment=False)[0]
    assert small.images.sources.image.shape == (2, 3, 32, 32)
    halved = torch.nn.functional.avg_pool2d(stored.images.sources.image, 2)
    torch.testing.assert_close(small.images.sources.image, halved, atol=0.02, rtol=0)


def test_empty_split_raises(make_dataset: Callable[..., TalkingFaceDataset], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared clip of split 'test'"):
        make_dataset("test")
    with pytest.raises(UserError, match="nowhere"):
        make_dataset(root=tmp_path / "nowhere")


def test_split_without_speech_raises(
    make_dataset: Callable[..., TalkingFaceDataset], drawn_clips: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn_clips / "ann_1", tmp_path / "ann_1")
    assert (tmp_path / "ann_1" / INFO_FILE).is_file()
    with pytest.raises(UserError, match="no clip with speech"):
        make_dataset(root=tmp_path)


def test_clips_that_are_too_short_are_told_from_silent_ones(drawn_clips: Path) -> None:
    config = DataConfig(root=str(drawn_clips), sequence_frames=100)
    with pytest.raises(UserError, match=r"2 clips with speech in step, but none with 111 frames.*sequence_frames"):
        TalkingFaceDataset(config, "train", 64, WINDOW, 4, seed=0)


def test_batch_size_that_is_no_multiple_of_frames_raises(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    with pytest.raises(UserError, match="multiple of data.frames"):
        make_dataset(batch_size=5)
