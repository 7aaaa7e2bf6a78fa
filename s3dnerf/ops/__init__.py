"""Operators with kernels of our own.

Each module holds one operator: its C structure, launcher, PyTorch registration, gradient, and reference implementation
in plain PyTorch. ``registry`` lists them.
"""
