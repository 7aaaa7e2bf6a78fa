"""Train ablations of the method and rank them: the command ``s3dnerf ablate``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
