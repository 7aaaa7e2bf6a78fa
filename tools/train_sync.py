"""Train or evaluate the lip-sync discriminator: the command ``s3dnerf train-sync``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-sync", *sys.argv[1:]]))
