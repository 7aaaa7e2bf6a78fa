"""Custom operators.

Each module holds one operator: its C structure, launcher, PyTorch registration, gradient and reference implementation
in plain PyTorch. ``registry`` lists them.
"""
