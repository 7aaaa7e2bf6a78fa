"""The commands ``serve`` and ``demo``."""

from __future__ import annotations

import argparse
from dataclasses import fields

from s3dnerf import limits
from s3dnerf.cli.arguments import CHECKPOINT, DEVICE, FIT_STEPS, add_command
from s3dnerf.cli.rendering import add_provenance_options, read_credentials
from s3dnerf.limits import IntRange
from s3dnerf.options import OneLineParser, add_int, read_text
from s3dnerf.serving.settings import ServerSettings

PORT = IntRange(0, 65535)


def add_serve(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `serve`."""
    parser = add_command(
        commands,
        "serve",
        run_serve,
        "Serve rendering and live sessions over HTTP, WebSocket and WebRTC",
        "POST /v1/render takes a picture and speech and gives the id of a job; /docs describes all routes.\n"
        "Needs the extra serve: pip install 's3dnerf[serve]'. There is no password and no encryption: listen on\n"
        "another address than this machine's own only behind a proxy that has them.",
        "  s3dnerf serve\n"
        "  curl -F image=@portrait.png -F audio=@speech.wav -F pose=speech http://127.0.0.1:8000/v1/render\n"
        "  curl http://127.0.0.1:8000/v1/render/ID                            # progress\n"
        "  curl -o talking.mp4 http://127.0.0.1:8000/v1/render/ID/result\n"
        "  s3dnerf serve --host 0.0.0.0 --port 80 --live-sessions 4 --upload-megabytes 8",
    )
    _add_options(parser)


def add_demo(commands: argparse._SubParsersAction[OneLineParser]) -> None:
    """Add the command `demo`."""
    parser = add_command(
        commands,
        "demo",
        run_demo,
        "Open a page on which a picture and speech become a video, or a live face",
        "The page is at the address that is printed; everything stays on this machine. It is the server of\n"
        "`s3dnerf serve` with a page in front. Needs the extra serve: pip install 's3dnerf[serve]'.\n"
        "Browsers give camera and microphone only to pages of this machine or with HTTPS.",
        "  s3dnerf demo\n  s3dnerf demo --port 7860 --checkpoint runs/mine",
    )
    _add_options(parser)


def _add_options(parser: OneLineParser) -> None:
    parser.add_argument(
        "--host", type=read_text, default="127.0.0.1", metavar="ADDRESS", help="address to listen on; 0.0.0.0 for all"
    )
    add_int(parser, "--port", PORT, default=8000, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument("--device", **DEVICE)
    add_int(parser, "--fit-steps", limits.FIT_STEPS, **FIT_STEPS)
    parser.add_argument(
        "--ice-server",
        type=read_text,
        action="append",
        metavar="URL",
        help="STUN or TURN server for WebRTC, such as stun:stun.example.org, where clients do not reach this machine "
        "directly; may be given several times",
    )
    parser.add_argument(
        "--name",
        type=read_text,
        action="append",
        metavar="HOST",
        help="name by which browsers reach this server, such as faces.example.org behind a proxy; pages at other names "
        "than localhost are refused. May be given several times",
    )
    parser.add_argument("--verbose", action="store_true", help="log each request")
    add_provenance_options(parser)
    group = parser.add_argument_group("limits")
    for part in fields(ServerSettings):
        rules = part.metadata
        name = f"--{part.name.replace('_', '-')}"
        add_int(group, name, rules["whole"], default=part.default, help=rules["help"])  # type: ignore[arg-type]


def run_serve(options: argparse.Namespace) -> None:
    """Serve until a signal ends the server."""
    _run(options, page=False)


def run_demo(options: argparse.Namespace) -> None:
    """Serve with the page until a signal ends the server."""
    _run(options, page=True)


def _run(options: argparse.Namespace, page: bool) -> None:
    from s3dnerf.ops.backend import keep_freed_memory
    from s3dnerf.pipeline import TalkingHeadPipeline
    from s3dnerf.serving.application import make_application
    from s3dnerf.serving.marks import VideoMarks
    from s3dnerf.serving.run import run_application

    keep_freed_memory()
    marks = VideoMarks(options.watermark, read_credentials(options))
    settings = ServerSettings(**{part.name: getattr(options, part.name) for part in fields(ServerSettings)})
    pipeline = TalkingHeadPipeline.from_pretrained(options.checkpoint, options.device, options.fit_steps)
    servers = tuple(options.ice_server or ())
    names = (options.host, *(options.name or ()))
    app = make_application(pipeline, settings, page=page, ice_servers=servers, names=names, marks=marks)
    run_application(app, options.host, options.port, options.verbose)
