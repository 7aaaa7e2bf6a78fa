"""Score videos of any method against real clips: the command ``s3dnerf score``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
