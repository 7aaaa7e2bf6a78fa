"""The command ``render``, and options that it shares with ``batch``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, FIT_STEPS, add_command
from s3dnerf.errors import ArgumentError
from s3dnerf.options import OneLineParser, add_int, name_output, read_path, read_text
from s3dnerf.render_options import RenderOptions

if TYPE_CHECKING:
    from s3dnerf.media.credentials import ContentCredentials

RENDER_SETTINGS = {
    "motion_scale": "scale of the motion of lips and jaw about its mean; 1 renders what speech asks for",
    "eye_motion_scale": "scale of the change of eye openness relative to the image",
    "motion_smoothing": "standard deviation, in frames, of the smoothing of motion in time; 0 for none",
    "source_expression_scale": "fraction, 0 to 1, of the expression seen in the image that is taken for expression and "
    "not for the person's own face",
    "source_detail_scale": "fraction, 0 to 1, of the image's own detail that is kept where little else changes",
}
"""The fields of ``RenderConfig`` and their help."""


def add_render(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `render`."""
    parser = add_command(
        commands,
        "render",
        run_render,
        "Generate a talking-head video from a portrait and speech",
        "The portrait is an image with a visible face, the speech an audio or video file of any length.\n"
        "Writes a video with 25 frames per second and the speech as its audio.",
        "  s3dnerf render --image portrait.png --audio speech.wav --out talking.mp4\n"
        "  s3dnerf render --image portrait.png --audio speech.wav --turn -20 5 --background green\n"
        "  s3dnerf render --image front.jpg left.jpg right.jpg --audio speech.wav --camera orbit\n"
        "  s3dnerf render --image group.jpg --audio speech.mp3 --face 2 --framing picture --pose nodding.mp4",
    )
    parser.add_argument(
        "--image",
        type=read_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="the portrait: PNG, JPEG, WebP, HEIC, AVIF; further images of the same person show what the first one "
        "hides, such as the other side of the face, and take time",
    )
    parser.add_argument(
        "--audio", type=read_path, required=True, metavar="FILE", help="the speech: an audio or video file"
    )
    parser.add_argument(
        "--out",
        type=read_path,
        metavar="FILE",
        help="the video to write, .mp4, .mov, .mkv or .webm, or a sequence such as frames/%%05d.png "
        "(default: outputs/<image>_<audio>.mp4)",
    )
    parser.add_argument(
        "--codec", choices=("h264", "hevc"), default="h264", help="codec of the video; WebM always has VP9"
    )
    add_provenance_options(parser)
    parser.add_argument("--checkpoint", **CHECKPOINT)
    add_render_options(parser)
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    parser.add_argument(
        "--start", type=read_path, metavar="FILE", help="continue from the end state of another video (JSON)"
    )
    parser.add_argument("--end", type=read_path, metavar="FILE", help="write the end state for the next video (JSON)")
    parser.add_argument("--device", **DEVICE)
    add_inference_settings(parser)


def run_render(options: argparse.Namespace) -> None:
    """Render a video from a source image and speech."""
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.render_file import render

    keep_freed_memory()
    render(
        image=options.image,
        audio=options.audio,
        out=options.out or name_output(options.image[0], options.audio),
        options=read_render_options(options),
        checkpoint=options.checkpoint,
        device=options.device,
        fit_steps=options.fit_steps,
        start=options.start,
        end=options.end,
        codec=options.codec,
        watermark=options.watermark,
        credentials=read_credentials(options),
        settings=read_inference_settings(options),
    )


def add_provenance_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that mark a video as generated."""
    parser.add_argument(
        "--watermark",
        type=read_text,
        metavar="TEXT",
        help="a short text to show in the lower right corner of every frame, such as AI-generated",
    )
    parser.add_argument(
        "--sign-key",
        type=read_path,
        metavar="FILE",
        help="private key (PEM) that signs C2PA content credentials into an .mp4, .m4v or .mov file",
    )
    parser.add_argument(
        "--sign-cert", type=read_path, metavar="FILE", help="its chain of certificates (PEM), that of the key first"
    )


def read_credentials(options: argparse.Namespace) -> ContentCredentials | None:
    """Return the key and the certificate of a command, or None if it has none.

    Raises:
        ArgumentError: there is one without the other.
    """
    files = {"sign_key": options.sign_key, "sign_cert": options.sign_cert}
    missing = [name for name, path in files.items() if path is None]
    if len(missing) == 1:
        reason = "is missing, and content credentials need a key and its certificate"
        raise ArgumentError(missing[0], None, reason, "Give both options, or neither.")
    if missing:
        return None
    from s3dnerf.media.credentials import ContentCredentials

    return ContentCredentials(options.sign_key, options.sign_cert)


def add_inference_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings that replace those stored with the weights."""
    inference = parser.add_argument_group("settings of inference (default: those stored with the weights)")
    for name, text in RENDER_SETTINGS.items():
        inference.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", dest=name, help=text)


def read_inference_settings(options: argparse.Namespace) -> dict[str, float]:
    """Return the settings among the options of a command."""
    return {name: getattr(options, name) for name in RENDER_SETTINGS if getattr(options, name) is not None}


def add_render_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of ``RenderOptions``, with dashes, as options of a command."""
    for part in fields(RenderOptions):
        name, rules = f"--{part.name.replace('_', '-')}", part.metadata
        text = "; ".join(filter(None, (rules["help"], rules["file"])))
        shared: dict[str, Any] = {"default": part.default, "help": text}
        if isinstance(part.default, bool):
            parser.add_argument(name, action="store_true", help=rules["help"])
        elif rules["choices"] is not None:
            parser.add_argument(name, type=type(part.default), choices=rules["choices"], **shared)
        elif rules["whole"] is not None:
            add_int(parser, name, rules["whole"], **shared)
        elif rules["number"] is not None:
            parser.add_argument(name, type=float, metavar="X", **shared)
        elif isinstance(part.default, tuple):
            shared |= {"type": float, "nargs": len(part.default)}
            parser.add_argument(name, metavar=rules["metavar"], **shared)
        else:
            parser.add_argument(name, type=read_text, metavar=rules["metavar"], **shared)


def read_render_options(options: argparse.Namespace) -> RenderOptions:
    """Return the rendering options among those of a command."""
    values = {part.name: getattr(options, part.name) for part in fields(RenderOptions)}
    values["turn"] = tuple(values["turn"])
    return RenderOptions().change(**values)


def add_extract_motion(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `extract-motion`."""
    parser = add_command(
        commands,
        "extract-motion",
        run_extract_motion,
        "Save the head motion of a video, for `render --pose`",
        "Tracks the head once, so that any number of videos can move like it.",
        "  s3dnerf extract-motion --video nodding.mp4 --out nodding.safetensors\n"
        "  s3dnerf render --image portrait.png --audio speech.wav --pose nodding.safetensors",
    )
    parser.add_argument("--video", type=read_path, required=True, metavar="FILE", help="a video of a person")
    parser.add_argument("--out", type=read_path, required=True, metavar="FILE", help="the file to write, .safetensors")


def run_extract_motion(options: argparse.Namespace) -> None:
    """Track the head of a video and save its motion."""
    from s3dnerf.face.driving_video import read_driving_motion
    from s3dnerf.face.motion_file import SUFFIX, write_motion
    from s3dnerf.media.files import check_output, require_file

    require_file(options.video, "video")
    check_output(options.out, [options.video])
    if options.out.suffix != SUFFIX:
        raise ArgumentError("out", str(options.out), "is no file of head motion", f"Let its name end in {SUFFIX}.")
    driving = read_driving_motion(options.video)
    write_motion(options.out, driving.pose)
    notes = driving.describe()
    print(f"{options.out}: {len(driving.pose)} frames{f'; {notes}' if notes else ''}")


def add_mesh(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `mesh`."""
    parser = add_command(
        commands,
        "mesh",
        run_mesh,
        "Save the head of a portrait as a triangle mesh",
        "Writes the front of the head, as the radiance field has it, with the colors of the photograph, in head units\n"
        "with y up and z toward the viewer. The back is flat. Needs the extra s3dnerf[mesh].",
        "  s3dnerf mesh --image portrait.png --out head.glb",
    )
    parser.add_argument("--image", type=read_path, required=True, metavar="FILE", help="the portrait")
    parser.add_argument(
        "--out", type=read_path, required=True, metavar="FILE", help="the file to write: .ply, .glb, .obj or .stl"
    )
    add_int(parser, "--resolution", limits.RESOLUTION, default=160, help="grid cells along the height of the head")
    add_int(parser, "--face", limits.FACE, help="which face of several to use (default: the largest)")
    parser.add_argument("--checkpoint", **CHECKPOINT)


def run_mesh(options: argparse.Namespace) -> None:
    """Make and save a mesh."""
    from s3dnerf.media.files import require_file
    from s3dnerf.mesh import check_mesh_output, make_mesh, save_mesh
    from s3dnerf.pipeline import TalkingHeadPipeline

    require_file(options.image, "image")
    check_mesh_output(options.out)
    pipeline = TalkingHeadPipeline.from_pretrained(options.checkpoint, "cpu")
    portrait = pipeline.encode_portrait(options.image, RenderOptions(face=options.face))
    mesh = make_mesh(pipeline.model, portrait, options.resolution)
    save_mesh(mesh, options.out)
    print(f"{options.out}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles")
