"""The command ``render``."""

from __future__ import annotations

import argparse

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, FIT_STEPS, add_command
from s3dnerf.options import OneLineParser, add_int, name_output, read_path, read_text

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
        "  s3dnerf render --image group.jpg --audio speech.mp3 --face 2 --framing picture --pose nodding.mp4",
    )
    parser.add_argument(
        "--image", type=read_path, required=True, metavar="FILE", help="the portrait: PNG, JPEG, WebP, HEIC, AVIF"
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
    parser.add_argument("--checkpoint", **CHECKPOINT)
    add_int(
        parser,
        "--size",
        limits.SIZE,
        help="side of the square around the head in pixels, an even number from 16 to 4096 (default: the model's own, "
        "256 for the shipped weights); ignored with --framing picture, which keeps the size of the image",
    )
    add_int(
        parser,
        "--max-side",
        limits.MAX_SIDE,
        default=1920,
        help="with --framing picture, the largest side of the video in pixels, 64 to 4096; larger images are reduced",
    )
    parser.add_argument(
        "--framing",
        choices=("crop", "picture"),
        default="crop",
        help="the square around the head, or the whole image with the head composited into it",
    )
    parser.add_argument(
        "--method",
        choices=("s3dnerf", "fd2talk"),
        default="s3dnerf",
        help="what moves the face: s3dnerf from speech (the default), or the expression coefficients of fd2talk, lips "
        "included",
    )
    parser.add_argument(
        "--renderer",
        choices=("nerf", "diffusion"),
        default="nerf",
        help="what makes the frames: the radiance field (the default) or, with --method fd2talk, latent diffusion from "
        "the warped image",
    )
    parser.add_argument(
        "--refine",
        choices=("off", "diffusion"),
        default="off",
        help="refine the frames of the radiance field by latent diffusion, or not (the default)",
    )
    parser.add_argument(
        "--pose",
        type=read_text,
        default="idle",
        metavar="POSE",
        help="head motion: static is still, idle sways a little, speech moves head, lids and brows as people do who "
        "say this, and a video file provides its own motion",
    )
    parser.add_argument(
        "--turn",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("RIGHT", "UP"),
        help="rotate the head by this many degrees to the viewer's right and up, -40 to 40 each (default: 0 0)",
    )
    parser.add_argument(
        "--liveliness",
        type=float,
        default=1.0,
        metavar="X",
        help="with --pose speech, how lively the head is: 0 (still) to 2 (twice as fast as usual)",
    )
    parser.add_argument("--blink", choices=("auto", "off"), default="auto", help="blink at random, or never")
    parser.add_argument(
        "--background",
        type=read_text,
        default="keep",
        metavar="COLOR",
        help="keep the background of the image, which is static, or replace it with a color such as green or #00ff00; "
        "transparent needs a .webm or PNG output",
    )
    add_int(
        parser,
        "--face",
        limits.FACE,
        help="which face of several to use; 1 is the largest (default: the largest)",
    )
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    add_int(parser, "--seed", limits.SEED, default=0, help="seed of motion and blinks, 0 or more")
    parser.add_argument(
        "--start", type=read_path, metavar="FILE", help="continue from the end state of another video (JSON)"
    )
    parser.add_argument("--end", type=read_path, metavar="FILE", help="write the end state for the next video (JSON)")
    parser.add_argument("--device", **DEVICE)
    inference = parser.add_argument_group("settings of inference (default: those stored with the weights)")
    for name, text in RENDER_SETTINGS.items():
        inference.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", dest=name, help=text)


def run_render(options: argparse.Namespace) -> None:
    """Render a video from a source image and speech."""
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.render_file import render

    keep_freed_memory()
    render(
        image=options.image,
        audio=options.audio,
        out=options.out or name_output(options.image, options.audio),
        checkpoint=options.checkpoint,
        size=options.size,
        pose=options.pose,
        turn=tuple(options.turn),
        blink=options.blink,
        background=options.background,
        framing=options.framing,
        seed=options.seed,
        device=options.device,
        face=options.face,
        fit_steps=options.fit_steps,
        start=options.start,
        end=options.end,
        liveliness=options.liveliness,
        method=options.method,
        renderer=options.renderer,
        refine=options.refine,
        max_side=options.max_side,
        codec=options.codec,
        settings={name: getattr(options, name) for name in RENDER_SETTINGS if getattr(options, name) is not None},
    )
