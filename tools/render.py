"""Generate a talking-head video: the command ``s3dnerf render``."""

import sys

from s3dnerf.cli import main

if __name__ == "__main__":
    sys.exit(main(["render", *sys.argv[1:]]))
