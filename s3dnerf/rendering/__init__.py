"""Cameras, rays, samples and compositing: pure functions on tensors, unaware of any model."""
