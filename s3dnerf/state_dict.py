"""Comparison of the tensors of a file with those of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def describe_difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Describe how names or shapes of tensors differ from those of a network; "" if they do not."""
    missing, surplus = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing:
        return f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if surplus:
        return f"it has {surplus[0]}, which the network has not"
    for name, value in wanted.items():
        if value.shape != given[name].shape:
            return f"{name} is {list(given[name].shape)} instead of {list(value.shape)}"
    return ""
