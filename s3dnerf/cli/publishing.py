"""The commands ``push`` and ``export``."""

from __future__ import annotations

import argparse

from s3dnerf.cli.arguments import CHECKPOINT, add_command
from s3dnerf.errors import UserError
from s3dnerf.options import OneLineParser, read_path, read_text


def add_push(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `push`."""
    parser = add_command(
        commands,
        "push",
        run_push,
        "Upload a model to the Hugging Face hub",
        "Uploads settings, weights and the card (README.md) of a model folder in one commit. A folder without a card\n"
        "gets one from a template. Log in first with `hf auth login`.",
        "  s3dnerf push user/model --model runs/own/model\n  s3dnerf push user/model --model models/own --private",
    )
    parser.add_argument("repo", type=read_text, metavar="REPO", help="the repository, such as user/model")
    parser.add_argument("--model", type=read_path, required=True, metavar="DIR", help="the model folder")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--license",
        type=read_text,
        default="other",
        metavar="NAME",
        help="license in a card from the template, as the hub names it, such as apache-2.0 (default: other)",
    )


def run_push(options: argparse.Namespace) -> None:
    """Upload a model folder."""
    from s3dnerf.publishing import push_model

    print(push_model(options.model, options.repo, private=options.private, license_name=options.license))


def add_export(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `export`."""
    parser = add_command(
        commands,
        "export",
        run_export,
        "Export the function that renders a frame to ONNX",
        "Writes one file for all portraits. Motion codes, eyes, head pose and encoded portrait go in, a frame comes\n"
        "out.",
        "  s3dnerf export --out model.onnx",
    )
    parser.add_argument("--out", type=read_path, required=True, metavar="FILE", help="the file to write (.onnx)")
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also run a frame in onnxruntime and with our kernels, one thread each, and print times and difference",
    )


def run_export(options: argparse.Namespace) -> None:
    """Export a model."""
    from s3dnerf.media.files import check_output

    if options.out.suffix.lower() != ".onnx":
        raise UserError(options.out, "has another suffix than .onnx", "Name a file such as model.onnx.")
    check_output(options.out)
    from s3dnerf.onnx_export import compare_export, export_renderer
    from s3dnerf.pipeline import TalkingHeadPipeline

    model = TalkingHeadPipeline.from_pretrained(options.checkpoint, "cpu").model
    names = export_renderer(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {len(names)} inputs")
    if options.compare:
        found = compare_export(model, options.out)
        print(
            f"a frame takes {found.exported_ms:.0f} ms in onnxruntime and {found.own_ms:.0f} ms with our operators "
            f"({found.exported_ms / found.own_ms:.1f} times as long); pixels differ by {found.max_difference} of 255"
        )
