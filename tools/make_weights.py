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

from s3dnerf import limits
from s3dnerf.cli import report_errors
from s3dnerf.config import load_config
from s3dnerf.errors import UserError
from s3dnerf.evaluation.model_card import CardSources, write_model_card
from s3dnerf.media.files import atomic_write_folder
from s3dnerf.options import HelpFormatter, OneLineParser, add_int, read_path, read_text
from s3dnerf.training.checkpoint import find_latest
from s3dnerf.training.config import S3DNeRFConfig

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
    add_int(parser, "--max-frames", limits.MAX_FRAMES, default=250, help="frames of each clip in the evaluation")
    parser.add_argument(
        "--compare",
        type=read_path,
        metavar="DIR",
        help="evaluation of other weights, to stand beside in the card",
    )
    add_int(parser, "--workers", limits.WORKERS, default=2, help="processes that prepare clips")
    add_int(
        parser,
        "--processes",
        limits.WORKERS,
        default=1,
        help="processes that train the model: on a CPU, one for each core",
    )
    return parser.parse_known_args(words)


def run(*words: str | Path, processes: int = 1) -> None:
    """Print and run a command of s3dnerf. Ends the program with its exit code if it fails."""
    command = ["s3dnerf", *map(str, words)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m")
    modules = launcher if processes > 1 else ()
    code = subprocess.run([sys.executable, "-m", *modules, *command], check=False).returncode
    if code:
        sys.exit(code)


def divide_step(options: argparse.Namespace, settings: list[str]) -> tuple[str, ...]:
    """Return the setting with which the processes together train the batches of each step that one would.

    Raises:
        UserError: their number does not divide that of the batches.
    """
    batches = load_config(S3DNeRFConfig, options.config, settings).train.gradient_accumulation_steps
    if batches % options.processes:
        raise UserError(
            "--processes",
            f"{options.processes} does not divide the {batches} batches of a step",
            "choose a divisor, or set --train.gradient_accumulation_steps",
        )
    return ("--train.gradient_accumulation_steps", str(batches // options.processes))


def train(command: str, run_dir: Path, *words: str | Path, processes: int = 1) -> Path:
    """Run or continue a training command and return its last checkpoint."""
    resume = ["--resume"] if find_latest(run_dir / "checkpoints") else []
    run(command, "--out", run_dir, *words, *resume, processes=processes)
    latest = find_latest(run_dir / "checkpoints")
    if latest is None:
        raise UserError(run_dir, "training wrote no checkpoint", "see the messages above")
    return latest


def main(words: list[str]) -> None:
    """Make the weights."""
    options, settings = parse_options(words)
    divided = divide_step(options, settings)
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
    model = ("--config", options.config, *data, *settings, *divided)
    checkpoint = train("train", out / "run", *model, processes=options.processes)
    test = ("--manifest", options.manifest, "--split", options.split, "--max-frames", options.max_frames)
    compare = ("--compare", options.compare) if options.compare else ()
    test = (*test, *compare, "--checkpoint", checkpoint / "model", "--resume")
    run("evaluate", "--clips", videos, *test, "--out", evaluation)
    with atomic_write_folder(weights) as part:
        for name in WEIGHTS:
            shutil.copy(checkpoint / "model" / name, part / name)
        extra = ["--processes", str(options.processes)] if options.processes > 1 else []
        extra = shlex.join([*extra, *settings])
        command = f"make weights VIDEOS=DIR MANIFEST=CSV ARGS='{extra}'".replace(" ARGS=''", "")
        name = Path(options.config).stem
        config = f"configs/{name}.yaml"
        sources = CardSources(name, config, out / "run", checkpoint, evaluation, command, options.compare)
        write_model_card(part, sources)
    print(f"\nweights and model card: {weights}")


if __name__ == "__main__":
    sys.exit(report_errors(lambda: main(sys.argv[1:])))
