"""The nodes for ComfyUI, loaded as ComfyUI loads them, without it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from s3dnerf.errors import UserError
from s3dnerf.media.audio import read_speech
from s3dnerf.models.s3dnerf.s3dnerf import S3DNeRF
from s3dnerf.pipeline import TalkingHeadPipeline
from s3dnerf.render_options import RenderOptions
from s3dnerf.training.config import S3DNeRFConfig

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 7


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder as a module of custom nodes."""
    folder, name = ROOT / "integrations" / "comfyui", "custom_nodes.s3dnerf"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, f"{name}.nodes")
    return module


@pytest.fixture
def sound() -> dict[str, object]:
    samples = read_speech(ROOT / "s3dnerf" / "assets" / "speech.wav")[8000 : 8000 + FRAMES * 640]
    return {"waveform": torch.from_numpy(samples)[None, None], "sample_rate": 16000}


def test_nodes_have_all_that_comfyui_asks_for(nodes: ModuleType) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node(), node.FUNCTION)) and node.CATEGORY
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        for kind, rules in (entry for group in node.INPUT_TYPES().values() for entry in group.values()):
            if isinstance(kind, list):
                assert rules["default"] in kind
            elif kind in ("INT", "FLOAT"):
                assert rules["min"] <= rules["default"] <= rules["max"]
            else:
                assert kind in ("STRING", "IMAGE", "AUDIO", "BOOLEAN", "S3DNERF_MODEL")


def test_inputs_are_the_rendering_options_and_their_defaults_are_the_same(nodes: ModuleType) -> None:
    inputs = nodes.NODE_CLASS_MAPPINGS["RenderS3DNeRF"].INPUT_TYPES()["optional"]
    expected = {part.name for part in fields(RenderOptions)} - {"turn"} | {"turn_right", "turn_up"}
    assert inputs.keys() == expected
    given: list[RenderOptions] = []

    def pipeline(image: object, audio: object, options: RenderOptions) -> SimpleNamespace:
        given.append(options)
        raise KeyboardInterrupt

    audio = {"waveform": torch.zeros(1, 2, 100), "sample_rate": 8000}
    defaults = {name: rules["default"] for name, (_, rules) in inputs.items()}
    for values in ({}, defaults, {**defaults, "turn_right": 9.0, "face": 2}):
        with pytest.raises(KeyboardInterrupt):
            nodes.NODE_CLASS_MAPPINGS["RenderS3DNeRF"]().render(pipeline, torch.zeros(1, 9, 8, 3), audio, **values)
    assert given == [RenderOptions(), RenderOptions(), RenderOptions(turn=(9.0, 0.0), face=2)]


@pytest.mark.slow
def test_an_image_and_speech_become_frames_of_comfyui(
    nodes: ModuleType,
    sound: dict[str, object],
    load_smoke: Callable[..., S3DNeRFConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from skimage.data import astronaut

    S3DNeRF(load_smoke().model).save_pretrained(tmp_path)
    (model,) = nodes.NODE_CLASS_MAPPINGS["LoadS3DNeRF"]().load(f" {tmp_path} ", "cpu", 0)
    assert isinstance(model, TalkingHeadPipeline)
    face = astronaut()[:300, 60:400]
    counted, node = [], nodes.NODE_CLASS_MAPPINGS["RenderS3DNeRF"]()
    comfy = {
        "comfy": ModuleType("comfy"),
        "comfy.utils": SimpleNamespace(ProgressBar=lambda total: SimpleNamespace(update=counted.append)),
        "comfy.model_management": SimpleNamespace(throw_exception_if_processing_interrupted=lambda: None),
    }
    for name, module in comfy.items():
        monkeypatch.setitem(sys.modules, name, module)
    images = torch.from_numpy(face)[None].float() / 255
    frames, mask, audio, fps = node.render(model, images, sound, background="transparent", size=0, pose="static")
    assert frames.shape == (FRAMES, 64, 64, 3) and frames.dtype == torch.float32 and fps == 25.0
    assert mask.shape == (FRAMES, 64, 64) and mask[:, 0, 0].min() > 0.9 > 0.1 > mask[:, 32, 32].max()
    assert audio is sound and counted == [1] * FRAMES
    expected = list(model(face, (sound["waveform"][0].numpy(), 16000), background="transparent", pose="static"))
    assert np.abs(255 * frames.numpy() - np.stack(expected)[..., :3]).max() < 1.0
    with pytest.raises(UserError, match="face"):
        node.render(model, torch.zeros(1, 64, 64, 3), sound)
