"""Training batches: pure functions of seed and step, people kept apart, everything in them consistent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from s3dnerf.data.clip import INFO_FILE, Clip, load_clip, save_clip
from s3dnerf.data.dataset import (
    Batch,
    DataConfig,
    TalkingFaceDataset,
    can_teach_speech,
    draw_track,
    flip_view,
    interpolate_view,
    read_track,
)
from s3dnerf.errors import UserError
from s3dnerf.face.camera import HeadPose, project
from s3dnerf.face.points import IRIS_LEFT, IRIS_RIGHT, KEPT_POINTS
from s3dnerf.media.audio import cut_speech_window, measure_level, speech_gain
from s3dnerf.media.image import resize_image
from s3dnerf.ops.image import downsample, warp_image
from s3dnerf.rendering.rays import project_points

SIZE, WINDOW, BATCH = 64, 7680, 4


@pytest.fixture(scope="module")
def make_dataset(drawn_clips: Path, one_thread: None) -> Callable[..., TalkingFaceDataset]:
    def make(
        split: str = "train",
        root: Path = drawn_clips,
        seed: int = 0,
        augment: bool = True,
        batch_size: int = BATCH,
        size: int = SIZE,
        **settings: object,
    ) -> TalkingFaceDataset:
        config = DataConfig(root=root, frames=2, sequences=2, sequence_frames=8, **{"cache": False, **settings})
        return TalkingFaceDataset(config, split, size, WINDOW, batch_size, seed, augment)

    return make


@pytest.fixture(scope="module")
def plain(make_dataset: Callable[..., TalkingFaceDataset]) -> TalkingFaceDataset:
    return make_dataset(augment=False)


def list_tensors(value: object, name: str = "batch") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {name: value}
    found = {}
    for part in fields(value) if is_dataclass(value) else ():
        found |= list_tensors(getattr(value, part.name), f"{name}.{part.name}")
    return found


def are_equal(one: Batch, other: Batch) -> bool:
    tensors, others = list_tensors(one), list_tensors(other)
    assert tensors.keys() == others.keys() and len(tensors) > 20
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_a_batch_is_a_pure_function_of_seed_and_step(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    one, other = make_dataset(), make_dataset()
    batches = [one[step] for step in (5, 6, 7)]
    assert are_equal(other[7], batches[2])
    assert are_equal(one[5], batches[0])
    assert not are_equal(batches[0], batches[1])
    assert not are_equal(make_dataset(seed=1)[5], batches[0])


def test_a_worker_process_makes_the_same_batch(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    dataset = make_dataset()
    loader = DataLoader(dataset, batch_size=None, sampler=[3, 9], num_workers=1, collate_fn=lambda batch: batch)
    for step, batch in zip((3, 9), loader, strict=True):
        assert are_equal(batch, dataset[step])


def test_cached_pixels_change_nothing(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    assert are_equal(make_dataset(cache=True)[2], make_dataset()[2])


def test_sizes_of_a_batch(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    points = len(KEPT_POINTS)
    shapes = {name: tuple(value.shape) for name, value in list_tensors(make_dataset()[0]).items()}
    assert shapes["batch.sources.image"] == (2, 3, SIZE, SIZE)
    assert shapes["batch.frames.image"] == (4, 3, SIZE, SIZE)
    assert shapes["batch.frames.landmarks"] == shapes["batch.frames.displacement"] == (4, points, 3)
    assert shapes["batch.frames.speech"] == (4, WINDOW)
    assert shapes["batch.speakers.image"] == (2, 3, SIZE, SIZE)
    assert shapes["batch.sequences.landmarks"] == (16, points, 3)
    assert shapes["batch.sequences.speech"] == (16, WINDOW)
    assert shapes["batch.sequences.camera.rotation"] == (16, 3, 3)
    assert shapes["batch.sequences.eyes"] == (16, 2)
    assert "batch.sequences.image" not in shapes
    assert shapes["batch.frames.flow"] == (4, 2, SIZE // 2, SIZE // 2)
    assert shapes["batch.frames.trust"] == (4, 1, SIZE // 2, SIZE // 2)
    assert "batch.sequences.flow" not in shapes
    assert shapes["batch.sources.matte"] == (2, 1, SIZE // 2, SIZE // 2)


def test_portraits_carry_their_own_mattes_mirrored_or_not(
    make_dataset: Callable[..., TalkingFaceDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_green(clip: Clip, indices: np.ndarray) -> np.ndarray:
        return np.stack([resize_image(frame, SIZE // 2)[..., 1] for frame in clip.read_frames(indices)])

    # In the place of true mattes, the green of the frames: it must stay with its picture.
    monkeypatch.setattr(Clip, "read_mattes", read_green)
    dataset = make_dataset()
    for step in range(4):
        sources = dataset[step].sources
        green = downsample(sources.image[:, 1:2], 2).flatten(1)
        for matte, expected in zip(sources.matte.flatten(1), green, strict=True):
            # Colors are changed, so that only their pattern is the same.
            assert torch.corrcoef(torch.stack([matte, expected]))[0, 1] > 0.95


def test_pixels_and_landmarks_of_a_batch_fit_together(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    # The cartoon's irises are black: where landmarks say they are, colors must be dark, flipped or not.
    rows = [np.searchsorted(KEPT_POINTS, iris[0]) for iris in (IRIS_LEFT, IRIS_RIGHT)]
    dataset = make_dataset()
    for step in range(4):
        frames = dataset[step].frames
        places = project_points(frames.landmarks[:, rows], frames.camera)[..., :2]
        colors = torch.nn.functional.grid_sample(frames.image, places[:, None], align_corners=False)
        assert colors.mean(dim=1).max() < 0.45
        assert frames.image.mean() > 0.2


def test_frames_are_of_the_person_in_their_portrait(plain: TalkingFaceDataset) -> None:
    # Each cartoon person has a background of their own: the top left corner tells them apart.
    for step in range(6):
        batch = plain[step]
        corners = batch.sources.image[:, :, 1, 1].repeat_interleave(batch.frames_per_source, 0)
        torch.testing.assert_close(batch.frames.image[:, :, 1, 1], corners, atol=0.05, rtol=0)


def test_the_flow_of_a_batch_leads_to_the_portrait(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    dataset = make_dataset(size=128)
    without, followed = 0.0, 0.0
    for step in range(4):
        batch = dataset[step]
        frames = batch.frames
        real = downsample(frames.image, 2)
        sources = downsample(batch.sources.image.repeat_interleave(batch.frames_per_source, 0), 2)
        without += ((sources - real).abs() * frames.trust).mean().item()
        followed += ((warp_image(sources, frames.flow) - real).abs() * frames.trust).mean().item()
    assert followed < 0.5 * without


def test_every_so_often_the_frames_are_a_run(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    dataset = make_dataset(augment=False, run_every=3, run_frames=5)
    for step in range(7):
        batch = dataset[step]
        is_run = step in (2, 5)
        assert len(batch.sources.eyes) == (1 if is_run else 2)
        assert batch.frames_per_source == (5 if is_run else 2)
        if is_run:
            # Each window begins a frame's 640 samples after the one before, and all of them are heard.
            speech = batch.frames.speech
            assert batch.frames.speaks.all() and speech.abs().amax(dim=1).min() > 0
            assert torch.equal(speech[1:, :-640], speech[:-1, 640:])
    assert all(make_dataset(run_every=0)[step].frames_per_source == 2 for step in range(6))


def test_portraits_come_with_their_displacement(plain: TalkingFaceDataset) -> None:
    batch = plain[0]
    mean_faces = torch.from_numpy(np.stack([track.mean_face for track in plain.tracks]))
    for sources, displacement in (
        (batch.sources, batch.source_displacement),
        (batch.speakers, batch.speaker_displacement),
    ):
        distance = ((sources.landmarks - displacement)[:, None] - mean_faces).abs().amax(dim=(2, 3))
        assert distance.amin(dim=1).max() < 1e-5


def test_displacement_is_measured_from_the_mean_face(plain: TalkingFaceDataset) -> None:
    for track in plain.tracks:
        view = interpolate_view(track, track.frames.astype(float))
        np.testing.assert_allclose(view.displacement.mean(axis=0), 0.0, atol=1e-5)
        mean_faces = view.landmarks - view.displacement
        np.testing.assert_allclose(mean_faces, np.broadcast_to(track.mean_face, mean_faces.shape), atol=1e-6)


def test_flipping_a_view_twice_changes_nothing(plain: TalkingFaceDataset) -> None:
    view = plain.read_view(plain.tracks[0], np.array([3, 20]), with_speech=True)
    twice = flip_view(flip_view(view))
    for name, value in vars(view).items():
        if value is not None:
            np.testing.assert_allclose(getattr(twice, name), value, atol=1e-6, err_msg=name)
    once = flip_view(view)
    np.testing.assert_array_equal(once.pixels, view.pixels[:, :, ::-1])
    np.testing.assert_array_equal(once.speech, view.speech)


def test_flipped_landmarks_project_onto_the_flipped_picture(plain: TalkingFaceDataset) -> None:
    view = plain.read_view(plain.tracks[0], np.array([3, 20]), with_speech=False)
    flipped = flip_view(view)
    before, after = (project(one.landmarks, HeadPose(one.rotation, one.scale, one.center)) for one in (view, flipped))
    left, right = (np.searchsorted(KEPT_POINTS, iris[0]) for iris in (IRIS_LEFT, IRIS_RIGHT))
    np.testing.assert_allclose(after[:, left], before[:, right] * [-1, 1, 1], atol=1e-5)
    pixels = np.round((after[:, left, :2] + 1) * SIZE / 2 - 0.5).astype(int)
    for frame, (x, y) in enumerate(pixels):
        assert flipped.pixels[frame, y, x].mean() < 80


def test_sequences_without_augmentation_have_the_windows_of_the_clip(plain: TalkingFaceDataset) -> None:
    track = next(track for track in plain.tracks if track.clip.id == "ann_0")
    speech = track.clip.read_speech()
    windows = speech_gain(measure_level([speech])) * cut_speech_window(speech, np.arange(track.clip.frames), WINDOW)
    found = 0
    for step in range(6):
        frames = plain[step].sequences
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


def test_times_between_frames_are_interpolated(plain: TalkingFaceDataset) -> None:
    track = plain.tracks[0]
    view = interpolate_view(track, np.array([4.25, 39.0]))
    expected = 0.75 * track.landmarks[4] + 0.25 * track.landmarks[5]
    np.testing.assert_allclose(view.landmarks[0], expected, atol=1e-6)
    np.testing.assert_array_equal(view.rotation[0], track.pose.rotation[4])
    np.testing.assert_array_equal(view.landmarks[1], track.landmarks[39])


def test_people_are_drawn_by_a_power_of_their_frames(plain: TalkingFaceDataset) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_track(plain.people, plain.config.person_power, rng).clip.id for _ in range(4000)]
    # Ann has 40 + 12 frames in two clips, Ben 30 in one.
    ann = 52**0.6 / (52**0.6 + 30**0.6)
    deviation = (ann * (1 - ann) / 4000) ** 0.5
    share = np.mean([name.startswith("ann") for name in drawn])
    assert abs(share - ann) < 4 * deviation
    of_ann = [name for name in drawn if name.startswith("ann")]
    assert np.mean([name == "ann_0" for name in of_ann]) == pytest.approx(40 / 52, abs=0.04)


def test_val_people_are_never_trained_on(
    make_dataset: Callable[..., TalkingFaceDataset], plain: TalkingFaceDataset
) -> None:
    val = make_dataset("val", augment=False)
    assert set(plain.people) == {"ann", "ben"}
    assert set(val.people) == set(val.speakers) == {"cid"}


def test_silent_clips_show_faces_and_teach_no_speech(plain: TalkingFaceDataset) -> None:
    assert {track.clip.id for tracks in plain.speakers.values() for track in tracks} == {"ann_0", "ben_0"}
    track = next(track for track in plain.tracks if track.clip.id == "ann_1")
    view = plain.read_view(track, np.array([2, 5]), with_speech=True)
    assert not view.speech.any() and not view.speaks.any()
    assert view.pixels.std() > 10
    speaking = plain.read_view(plain.tracks[0], np.array([2, 5]), with_speech=True)
    assert speaking.speech.any() and speaking.speaks.all()


def test_speech_is_brought_to_the_normal_level(plain: TalkingFaceDataset) -> None:
    for tracks in plain.speakers.values():
        for track in tracks:
            assert measure_level([track.speech]).active_rms == pytest.approx(10 ** (-23 / 20), rel=1e-3)


def test_clips_out_of_step_or_with_lost_faces_teach_no_speech(plain: TalkingFaceDataset) -> None:
    track = plain.tracks[0]
    assert can_teach_speech(track, 8)
    assert not can_teach_speech(track, 38)  # too short for the fastest tempo
    assert not can_teach_speech(replace(track, speech=None), 8)
    assert not can_teach_speech(replace(track, clip=replace(track.clip, sync="unclear")), 8)
    lost = np.arange(40) != 17
    assert not can_teach_speech(replace(track, clip=replace(track.clip, valid=lost)), 8)


def test_frames_without_a_face_are_never_shown(drawn_clips: Path, tmp_path: Path) -> None:
    clip = load_clip(drawn_clips / "ben_0")
    valid = np.arange(30) >= 25
    copy = replace(clip, path=tmp_path / "ben_0", valid=valid)
    save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
    track = read_track(tmp_path / "ben_0")
    assert track.frames.tolist() == [25, 26, 27, 28, 29]
    np.testing.assert_allclose(track.mean_face, track.landmarks[25:].mean(axis=0))


def test_blinks_are_drawn_four_times_as_often(drawn_clips: Path, tmp_path: Path) -> None:
    clip = load_clip(drawn_clips / "ben_0")
    eyes = np.full_like(clip.eye_openness, 0.3)
    for closed, expected in (
        (slice(0, 0), np.full(30, 1 / 30)),
        (slice(10, 13), np.where((np.arange(30) >= 10) & (np.arange(30) < 13), 4, 1) / 39),
    ):
        eyes[closed] = 0.1
        copy = replace(clip, path=tmp_path / f"ben_{closed.stop}", eye_openness=eyes)
        save_clip(copy, iter(clip.read_frames(range(30))), clip.read_speech())
        np.testing.assert_allclose(read_track(copy.path).chances, expected)


def test_another_size_is_made_from_the_stored_one(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    small, stored = make_dataset(size=32, augment=False)[0], make_dataset(augment=False)[0]
    assert small.sources.image.shape == (2, 3, 32, 32)
    halved = torch.nn.functional.avg_pool2d(stored.sources.image, 2)
    torch.testing.assert_close(small.sources.image, halved, atol=0.02, rtol=0)


def test_an_empty_split_is_refused(make_dataset: Callable[..., TalkingFaceDataset], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared clip of split 'test'"):
        make_dataset("test")
    with pytest.raises(UserError, match="nowhere"):
        make_dataset(root=tmp_path / "nowhere")


def test_a_split_without_speech_is_refused(
    make_dataset: Callable[..., TalkingFaceDataset], drawn_clips: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn_clips / "ann_1", tmp_path / "ann_1")
    assert (tmp_path / "ann_1" / INFO_FILE).is_file()
    with pytest.raises(UserError, match="no clip with speech"):
        make_dataset(root=tmp_path)


def test_a_batch_size_that_cannot_be_shared_is_refused(make_dataset: Callable[..., TalkingFaceDataset]) -> None:
    with pytest.raises(UserError, match="multiple of data.frames"):
        make_dataset(batch_size=5)
