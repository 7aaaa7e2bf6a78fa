"""Weight files with random values, in the layouts of the public ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Layout = Mapping[str, tuple[int, ...]]


@pytest.fixture
def write_weights(tmp_path: Path, one_thread: None) -> Callable[[str, Layout], Path]:
    """Writes a state dict of that layout: safetensors, or a pickle for another suffix."""
    import torch
    from safetensors.torch import save_file

    def draw(key: str, noise: torch.Tensor) -> torch.Tensor:
        # Values neither grow nor fade from layer to layer; the heads of LPIPS are positive.
        if noise.ndim > 1:
            weights = noise * (2 / noise[0].numel()) ** 0.5
            return weights.abs() if key.startswith("lin") else weights
        return 0.1 * noise + (0.0 if key.endswith(("bias", "mean")) else 1.0)

    def write(name: str, layout: Layout) -> Path:
        generator = torch.Generator().manual_seed(0)
        state = {key: draw(key, torch.randn(shape, generator=generator)) for key, shape in layout.items()}
        path = tmp_path / name
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        return path

    return write
