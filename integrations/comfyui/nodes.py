"""Two nodes: one loads a model, one renders an image and speech as frames. Their inputs follow ``RenderOptions``."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import torch
from torch import Tensor

from s3dnerf import RenderOptions, TalkingHeadPipeline, limits
from s3dnerf.render_options import MAX_TURN

CATEGORY = "s3dnerf"
Inputs = dict[str, tuple[Any, dict[str, Any]]]


class LoadS3DNeRF:
    """Loads the shipped weights, a model folder, or a repository of the Hugging Face hub."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("S3DNERF_MODEL",)
    RETURN_NAMES = ("model",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802 (ComfyUI names it)
        """Return the inputs of the node."""
        checkpoint = {"default": "", "tooltip": "a model folder or a hub id; empty for the shipped weights"}
        steps = {"default": 0, "min": 0, "max": limits.FIT_STEPS.maximum, "tooltip": "steps of fitting to each image"}
        return {
            "required": {
                "checkpoint": ("STRING", checkpoint),
                "device": (["auto", "cpu", "cuda", "mps"], {"default": "auto"}),
                "fit_steps": ("INT", steps),
            }
        }

    def load(self, checkpoint: str, device: str, fit_steps: int) -> tuple[TalkingHeadPipeline]:
        """Return the pipeline."""
        return (TalkingHeadPipeline.from_pretrained(checkpoint.strip() or None, device, fit_steps),)


class RenderS3DNeRF:
    """Renders the first image of a batch as frames that say the speech."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK", "AUDIO", "FLOAT")
    RETURN_NAMES = ("frames", "mask", "audio", "fps")
    FUNCTION = "render"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:  # noqa: N802 (ComfyUI names it)
        """Return the inputs of the node: the model, an image, speech, and all rendering options."""
        given: Inputs = {"model": ("S3DNERF_MODEL", {}), "image": ("IMAGE", {}), "audio": ("AUDIO", {})}
        options: Inputs = {}
        for part in fields(RenderOptions):
            options |= describe_option(part)
        return {"required": given, "optional": options}

    def render(
        self, model: TalkingHeadPipeline, image: Tensor, audio: dict[str, Any], **inputs: Any
    ) -> tuple[Tensor, Tensor, dict[str, Any], float]:
        """Render all frames.

        Args:
            model: from the node that loads it.
            image: ``float [B, H, W, 3]`` in [0, 1].
            audio: ``waveform [B, channels, samples]`` and ``sample_rate``.
            inputs: rendering options.

        Returns:
            Frames ``float32 [T, H, W, 3]`` in [0, 1]; a mask ``[T, H, W]``, which is 1 where frames are transparent;
            the speech; and the frames per second.
        """
        picture = (255.0 * image[0].clamp(0, 1) + 0.5).to(torch.uint8).cpu().numpy()
        sound = audio["waveform"][0].float().cpu().numpy(), int(audio["sample_rate"])
        video = model(picture, sound, read_options(inputs))
        count = make_progress(len(video))
        frames = []
        for frame in video.iterate("pt"):
            frames.append(frame.permute(1, 2, 0).cpu())
            count()
        shown = torch.stack(frames)
        opaque = shown[..., 3] if shown.shape[-1] == 4 else torch.ones(shown.shape[:3])
        return shown[..., :3].contiguous(), 1.0 - opaque, audio, float(video.fps)


def describe_option(part: Field[Any]) -> Inputs:
    """Return the inputs of ComfyUI for a field of ``RenderOptions``; a pair of angles becomes two."""
    rules, default, name = part.metadata, part.default, part.name
    shared = {"default": default, "tooltip": rules["help"]}
    if rules["choices"] is not None:
        return {name: (list(rules["choices"]), shared)}
    if isinstance(default, bool):
        return {name: ("BOOLEAN", shared)}
    if rules["whole"] is not None:
        allowed, optional = rules["whole"], default is None
        bounds = {"min": 0 if optional else allowed.minimum, "max": allowed.maximum}
        return {name: ("INT", {**shared, **bounds, "default": 0 if optional else default})}
    if rules["number"] is not None:
        low, high = rules["number"]
        return {name: ("FLOAT", {**shared, "min": low, "max": high, "step": 0.01})}
    if name == "turn":
        angles = {**shared, "default": 0.0, "min": -MAX_TURN, "max": MAX_TURN, "step": 0.5}
        return {f"turn_{side}": ("FLOAT", dict(angles)) for side in ("right", "up")}
    return {name: ("STRING", {**shared, "default": "" if default is None else str(default)})}


def read_options(inputs: dict[str, Any]) -> RenderOptions:
    """Return the rendering options of inputs; missing ones, and zero or "" for none, have the default."""
    values = dict(inputs)
    turn = values.pop("turn_right", 0.0), values.pop("turn_up", 0.0)
    optional = {part.name for part in fields(RenderOptions) if part.default is None}
    kept = {name: value for name, value in values.items() if name not in optional or value not in (0, "")}
    return RenderOptions().change(turn=turn, **kept)


def make_progress(total: int) -> Any:
    """Return a function to call for each frame, which moves ComfyUI's progress bar and ends a cancelled run."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:  # outside of ComfyUI, as in the tests
        return lambda: None
    bar = ProgressBar(total)

    def count() -> None:
        throw_exception_if_processing_interrupted()
        bar.update(1)

    return count


NODE_CLASS_MAPPINGS = {"LoadS3DNeRF": LoadS3DNeRF, "RenderS3DNeRF": RenderS3DNeRF}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadS3DNeRF": "Load S3D-NeRF", "RenderS3DNeRF": "Render S3D-NeRF"}
