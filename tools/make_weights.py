"""Make the shipped weights from videos: clips, sync offsets, sync discriminator, model, evaluation, model card.

Each stage is a command of s3dnerf, which is printed before it runs. A second run continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from s3dnerf.cli import report_errors
from s3dnerf.errors import UserError
from s3dnerf.evaluation.model_card import CardSources, write_model_card
from s3dnerf.media.files import atomic_write_folder
from s3dnerf.options import HelpFormatter, OneLineParser, read_path, read_text
from s3dnerf.training.checkpoint import find_latest

WEIGHTS = ("config.json", "render_config.json", "model.safetensors")


def parse_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the settings for the training of the model."""
    parser = OneLineParser(
        description=__doc__,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        epilog="Settings such as --train.steps 1000 are passed on to the training of the model.",
    )
    parser.takes_settings = True
    parser.add_argument("--videos", type=read_path, required=True, metavar="DIR", help="folder with the videos")
    parser.add_argument("--manifest", type=read_path, required=True, metavar="CSV", help="table of the clips")
    parser.add_argument("--config", type=read_text, default="base.yaml", metavar="NAME", help="settings of the model")
    parser.add_argument(
        "--sync-config", type=read_text, default="sync.yaml", metavar="NAME", help="of the discriminator"
    )
    parser.add_argument(
        "--out", type=read_path, default=Path("runs/weights"), metavar="DIR", help="folder for everything"
    )
    parser.add_argument("--split", type=read_text, default="val", metavar="NAME", help="split of the final evaluation")
    parser.add_argument("--max-frames", type=int, default=250, help="frames of each clip in the evaluation")
    parser.add_argument(
        "--compare",
        type=read_path,
        metavar="DIR",
        help="evaluation of other weights, to stand beside in the card",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare clips")
    return parser.parse_known_args(words)


def run(*words: str | Path) -> None:
    """Print and run a command of s3dnerf. Ends the program with its exit code if it fails."""
    command = ["s3dnerf", *map(str, words)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
    if code:
        sys.exit(code)


def train(command: str, run_dir: Path, *words: str | Path) -> Path:
    """Run or continue a training command and return its last checkpoint."""
    resume = ["--resume"] if find_latest(run_dir / "checkpoints") else []
    run(command, "--out", run_dir, *words, *resume)
    latest = find_latest(run_dir / "checkpoints")
    if latest is None:
        raise UserError(run_dir, "training wrote no checkpoint", "see the messages above")
    return latest


def main(words: list[str]) -> None:
    """Make the weights."""
    options, settings = parse_options(words)
    out, clips = options.out, options.out / "clips"
    videos = options.videos / "clips" if (options.videos / "clips").is_dir() else options.videos
    offsets, evaluation, weights = out / "offsets.csv", out / "evaluation", out / "model"
    prepare = ("--videos", options.videos, "--manifest", options.manifest, "--workers", options.workers)
    run("prepare", *prepare, "--out", clips)
    sync = ("--config", options.sync_config, "--data.root", clips)
    if not offsets.is_file():
        run("train-sync", *sync, "--offsets", offsets, "--out", out / "offsets")
    discriminator = train("train-sync", out / "sync", *sync, "--data.offsets", offsets) / "model"
    data = ("--data.root", clips, "--data.offsets", offsets, "--train.sync_discriminator", discriminator)
    checkpoint = train("train", out / "run", "--config", options.config, *data, *settings)
    test = ("--manifest", options.manifest, "--split", options.split, "--max-frames", options.max_frames)
    compare = ("--compare", options.compare) if options.compare else ()
    test = (*test, *compare, "--checkpoint", checkpoint / "model", "--resume")
    run("evaluate", "--clips", videos, *test, "--out", evaluation)
    with atomic_write_folder(weights) as part:
        for name in WEIGHTS:
            shutil.copy(checkpoint / "model" / name, part / name)
        command = f"make weights VIDEOS=DIR MANIFEST=CSV ARGS='{shlex.join(settings)}'".replace(" ARGS=''", "")
        name = Path(options.config).stem
        config = f"configs/{name}.yaml"
        sources = CardSources(name, config, out / "run", checkpoint, evaluation, command, options.compare)
        write_model_card(part, sources)
    print(f"\nweights and model card: {weights}")


if __name__ == "__main__":
    sys.exit(report_errors(lambda: main(sys.argv[1:])))
