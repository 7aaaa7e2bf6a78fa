"""Loading of the weights of public networks from the user's files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from s3dnerf.errors import UserError, first_line
from s3dnerf.state_dict import describe_difference

from .image import scale_to_white

Network = TypeVar("Network", bound=nn.Module)
BATCH_COUNTER = "num_batches_tracked"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or a file of ``torch.save``, of which only tensors are unpickled.

    Raises:
        UserError: the file is missing or broken, or does not hold a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(path, "is not there", "Name a file with the weights.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = f"cannot be read as a state dict ({first_line(error)})"
        raise UserError(path, reason, "Download it again, or save its tensors alone as safetensors.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(path, "is not a state dict of names and tensors", "Save network.state_dict() alone.")
    return dict(state)


def load_weights(
    network: Network, state: Mapping[str, Tensor], path: str | Path, title: str, ignored: tuple[str, ...] = ()
) -> Network:
    """Load a state dict into a network, freeze it and return it in evaluation mode.

    Args:
        network: the network.
        state: its weights. Counters of batches may be missing.
        path: file of the weights, for messages.
        title: name of the network, for messages.
        ignored: prefixes of the names of unused parts.

    Raises:
        UserError: names or shapes are not those of the network.
    """
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith(BATCH_COUNTER)}
    given = {
        name: value
        for name, value in state.items()
        if not name.endswith(BATCH_COUNTER) and not name.startswith(ignored)
    }
    wrong = describe_difference(wanted, given)
    if wrong:
        hint = "Use the public file that is meant for this place."
        raise UserError(path, f"is not {title}: {wrong}", hint)
    network.load_state_dict(given, strict=False)
    return network.eval().requires_grad_(False)


def to_batch(frames: np.ndarray, network: nn.Module) -> Tensor:
    """Return frames ``[T, H, W, 3]`` as ``float32 [T, 3, H, W]`` in [0, 1] on the device of the network."""
    device = next(network.parameters()).device
    batch = torch.from_numpy(scale_to_white(frames).astype(np.float32) / 255.0)
    return batch.permute(0, 3, 1, 2).contiguous().to(device)


def _load_pickle(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)
