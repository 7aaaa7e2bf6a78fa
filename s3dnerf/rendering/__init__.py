"""Cameras, rays, samples and compositing: pure functions on tensors, independent of any model."""
