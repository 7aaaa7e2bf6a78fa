"""Face geometry: detection, landmarks, head pose, head crop, face regions and head motion."""
