"""The command ``push``."""

from __future__ import annotations

import argparse

from s3dnerf.cli.arguments import add_command
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
