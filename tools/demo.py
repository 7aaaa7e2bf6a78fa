"""Write outputs/demo.mp4: a public-domain portrait from scikit-image says the shipped sentence."""

import sys
from pathlib import Path

from skimage.data import astronaut

import s3dnerf
from s3dnerf.cli import main
from s3dnerf.media.image import write_image

PORTRAIT = Path("outputs/astronaut.png")
SPEECH = Path(s3dnerf.__file__).parent / "assets" / "speech.wav"

if __name__ == "__main__":
    write_image(PORTRAIT, astronaut())
    words = ["render", "--image", str(PORTRAIT), "--audio", str(SPEECH), "--out", "outputs/demo.mp4"]
    sys.exit(main([*words, *sys.argv[1:]]))
