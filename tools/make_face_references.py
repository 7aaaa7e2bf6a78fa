"""Record what mediapipe finds in a photograph, for the tests of the face networks.

    pip install mediapipe==0.10.21
    python tools/make_face_references.py

mediapipe asks for other versions of NumPy and OpenCV: use an environment of its own, without this package.
"""

from pathlib import Path

import cv2
import mediapipe
import numpy as np
import skimage.data

OUT = Path(__file__).parents[1] / "tests" / "face" / "references.npz"
PASSES = 8
MATTE_SIDE = 64


def main() -> None:
    """Write the landmarks of both meshes and the matte of the astronaut's head."""
    image = np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])
    solutions = mediapipe.solutions
    references = {}
    for name, refined in (("plain", False), ("fine", True)):
        with solutions.face_mesh.FaceMesh(static_image_mode=False, refine_landmarks=refined) as mesh:
            for _ in range(PASSES):
                (face,) = mesh.process(image).multi_face_landmarks
        points = np.array([(2 * point.x - 1, 2 * point.y - 1, -2 * point.z) for point in face.landmark], np.float32)
        references[name] = points if refined else points[:, :2]
    with solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as segmentation:
        matte = segmentation.process(image).segmentation_mask
    size = (MATTE_SIDE, MATTE_SIDE)
    references["matte"] = np.round(255 * cv2.resize(matte, size, interpolation=cv2.INTER_AREA)).astype(np.uint8)
    np.savez_compressed(OUT, **references)


if __name__ == "__main__":
    main()
