"""Train on prepared clips: the command ``s3dnerf train``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
