"""Runs a talking-head method over a folder of real clips, and scores what it makes."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from s3dnerf import limits
from s3dnerf.constants import FPS, SAMPLES_PER_FRAME
from s3dnerf.errors import UserError, first_line
from s3dnerf.evaluation.framing import locate_head
from s3dnerf.evaluation.measures import TASKS
from s3dnerf.evaluation.methods import Method, load_method, takes_poses
from s3dnerf.evaluation.protocol import CRF, pair_speech
from s3dnerf.evaluation.score import RealClips, check_score_settings, score_videos
from s3dnerf.evaluation.score_jobs import ScoreSettings, describe_error
from s3dnerf.evaluation.score_report import ScoreReport
from s3dnerf.evaluation.scorer import find_sound
from s3dnerf.face.camera import HeadPose, fit_head_pose, smooth_head_pose
from s3dnerf.face.crop import CropBox, apply_crop
from s3dnerf.face.registration import TRACKED_SIGMA
from s3dnerf.face.video import track_landmarks
from s3dnerf.media.audio import count_frames, read_speech
from s3dnerf.media.files import atomic_write
from s3dnerf.media.video import VideoWriter, stream_frames
from s3dnerf.memory import measure_peak_memory
from s3dnerf.paths import is_folder

COSTS_FILE = "costs.json"
MEGABYTE = 2**20


@dataclass(frozen=True)
class ClipInput:
    """What a method is given of a clip."""

    clip: str
    image: np.ndarray
    """The first frame, ``uint8 [H, W, 3]``."""
    audio: np.ndarray
    """16 kHz speech ``float32 [640 T]``."""
    poses: HeadPose
    """T head poses in pixels of the image."""


def benchmark_method(
    name: str,
    real: RealClips,
    out: Path,
    settings: ScoreSettings,
    against: Sequence[Path] = (),
    workers: int = 2,
    overwrite: bool = False,
) -> ScoreReport:
    """Run a method over real clips, score its videos and report its cost.

    Videos are written to OUT/videos/<class>/, with the sound that the method was given. Clips on which the method fails
    are listed with the reason, and OUT/errors has the traceback.

    Args:
        name: of the class, see ``load_method``.
        real: the real clips.
        out: output folder.
        settings: how videos are scored; its task decides what the method is given.
        against: folders of other videos to compare with, see ``score_videos``.
        workers: number of processes that score.
        overwrite: make videos again that exist already.

    Raises:
        UserError: the method or an argument is invalid, or no video could be scored.
    """
    check_score_settings(settings, workers)
    method = load_method(name)
    if settings.task == "self" and not takes_poses(method):
        hint = "Use --task free, or add poses to its arguments."
        raise UserError(name, "takes no poses, which --task self gives", hint)
    if settings.task == "free" and takes_poses(method):
        raise UserError(name, "takes poses, which --task free does not give", "Use --task self or --task cross.")
    videos = out / "videos" / method.__name__
    failed = run_method(method, real, videos, settings, out / "errors", overwrite)
    if failed and not is_folder(videos):
        clip, reason = next(iter(failed.items()))
        raise UserError(name, f"made no video ({clip}: {reason})", f"{out / 'errors'} has the tracebacks.")
    report = score_videos(videos, real, out, against, settings, workers)
    label = next(iter(report.methods))
    for clip, reason in failed.items():
        report.fail([label], clip, reason)
    report.costs[label] = summarize_costs(read_costs(videos))
    report.save(out)
    return report


def run_method(
    method: type[Method], real: RealClips, videos: Path, settings: ScoreSettings, errors: Path, overwrite: bool = False
) -> dict[str, str]:
    """Write a method's video of every real clip; return the reason for each clip that has none.

    The time and memory are kept in VIDEOS/costs.json.
    """
    limits.require_choice("--task", settings.task, TASKS)
    costs = {} if overwrite else read_costs(videos)
    clips = real.find()
    todo = [clip for clip in clips if clip.stem not in costs or not (videos / f"{clip.stem}.mp4").is_file()]
    sounds = pair_speech(clips, real.read_manifest()) if settings.task == "cross" else {}
    failed, inputs = dict[str, str](), list[ClipInput]()
    for clip in tqdm(todo, desc="track", unit="clip"):
        try:
            inputs.append(read_input(clip, sounds.get(clip.stem, clip), settings))
        except UserError as error:
            failed[clip.stem] = f"its real clip cannot be used: {describe_error(error)}"
    if not inputs:
        return failed
    before, started = measure_peak_memory() * MEGABYTE, time.perf_counter()
    runner = method()
    loading = time.perf_counter() - started
    for one in tqdm(inputs, desc=method.__name__, unit="clip"):
        try:
            seconds = write_video(runner, one, videos / f"{one.clip}.mp4", takes_poses(method))
        except OSError:
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            failed[one.clip] = f"the method failed ({reason})"
            with atomic_write(errors / f"{one.clip}.txt") as part:
                part.write_text(traceback.format_exc(), "utf-8")
            continue
        costs[one.clip] = {
            "frames": len(one.poses),
            "seconds": seconds,
            "loading": loading,
            "memory": measure_peak_memory() * MEGABYTE,
            "memory_before": before,
            "gpu_memory": measure_peak_gpu_memory(),
        }
        with atomic_write(videos / COSTS_FILE) as part:
            part.write_text(json.dumps(costs, indent=1) + "\n", "utf-8")
    return failed


def read_input(clip: Path, sound_of: Path, settings: ScoreSettings) -> ClipInput:
    """Read what a method is given of a clip: the first frame, the sound of a clip, and the tracked head poses.

    Raises:
        UserError: the clip is broken or shows no face, or there is no sound.
    """
    sound = find_sound(sound_of)
    if sound is None:
        raise UserError(sound_of, "has no sound", "Put a .wav of the same name beside it.")
    speech = read_speech(sound)
    most = settings.max_frames
    if settings.task == "cross":
        most = min(count_frames(len(speech)), most or limits.MAX_INT)
    box = locate_head(clip, most) if settings.crop == "head" else None
    image = next(_open_clip(clip, box))
    landmarks = track_landmarks(clip, image.shape[:2], islice(_open_clip(clip, box), most)).landmarks
    poses = smooth_head_pose(fit_head_pose(landmarks), TRACKED_SIGMA)
    audio = np.zeros(len(poses) * SAMPLES_PER_FRAME, np.float32)
    used = speech[: len(audio)]
    audio[: len(used)] = used
    return ClipInput(clip.stem, image, audio, poses)


def write_video(runner: Method, given: ClipInput, path: Path, with_poses: bool) -> float:
    """Write the video of one clip and return the seconds that the method took.

    Raises:
        ValueError: the method returns other frames than T of one size.
        Exception: what the method raises.
    """
    count, seconds, written = len(given.poses), 0.0, 0
    started = time.perf_counter()
    arguments = (given.image, given.audio, given.poses) if with_poses else (given.image, given.audio)
    frames = iter(runner.reenact(*arguments))
    first = next(frames, None)
    seconds += time.perf_counter() - started
    if first is None:
        raise ValueError(f"it returned no frame of {count}")
    height, width = check_frame(first)
    with VideoWriter(path, (width, height), FPS, audio=given.audio, crf=CRF) as writer:
        frame: np.ndarray | None = first
        while frame is not None:
            writer.write(frame)
            written += 1
            started = time.perf_counter()
            frame = next(frames, None)
            seconds += time.perf_counter() - started
            if written > count:
                break
        if written != count:
            raise ValueError(f"it returned {'more than ' * (written > count)}{min(written, count)} frames of {count}")
    return seconds


def check_frame(frame: np.ndarray) -> tuple[int, int]:
    """Return the height and width of a frame, or raise ValueError if it is not ``uint8 [h, w, 3]``."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"frames must be uint8 [h, w, 3], got {what}")
    return frame.shape[0], frame.shape[1]


def summarize_costs(costs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the cost of a method over all of its clips."""
    runs = list(costs.values())
    if not runs:
        return {}
    frames = sum(run["frames"] for run in runs)
    summary = {
        "seconds a frame": sum(run["seconds"] for run in runs) / frames,
        "seconds to load": round(max(run["loading"] for run in runs), 3),
        "peak memory (MB)": max(run["memory"] for run in runs) / 1e6,
        "of this before it was loaded (MB)": max(run["memory_before"] for run in runs) / 1e6,
    }
    gpu = max(run["gpu_memory"] for run in runs)
    return summary | ({"peak GPU memory (MB)": gpu / 1e6} if gpu else {})


def read_costs(videos: Path) -> dict[str, dict[str, float]]:
    """Return the costs of each clip that a method has made, empty without any."""
    path = videos / COSTS_FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(path, f"cannot be read ({first_line(error)})", "Remove it, or use --overwrite.") from error


def measure_peak_gpu_memory() -> float:
    """Return the peak of GPU memory that PyTorch allocated in bytes; 0 if no method used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.max_memory_allocated())


def _open_clip(clip: Path, box: CropBox | None) -> Iterator[np.ndarray]:
    for frame in stream_frames(clip, FPS):
        yield frame if box is None else apply_crop(frame, box, max(2, round(box.side) // 2 * 2))
