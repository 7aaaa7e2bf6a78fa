"""Train motion diffusion, stage 1 of FD2Talk: the command ``s3dnerf train-motion``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-motion", *sys.argv[1:]]))
