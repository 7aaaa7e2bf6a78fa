"""Face geometry: landmarks, head pose, regions, the head crop."""
