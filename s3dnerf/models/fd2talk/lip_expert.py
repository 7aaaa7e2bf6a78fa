"""The lip expert of FD2Talk: whether the lips of generated motion match the speech.

Its speech tower is that of the sync discriminator, frozen. A small network embeds lip coefficients of five frames in
the same space.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from s3dnerf.models.fd2talk.config import LipExpertConfig


class LipExpert(nn.Module):
    """Embeds runs of consecutive expression coefficients as unit vectors."""

    def __init__(self, config: LipExpertConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.network = nn.Sequential(
            nn.Linear(config.frames * channels, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, config.embedding),
        )

    def forward(self, expression: Tensor) -> Tensor:
        """Embed all runs of T frames: standardized ``[B, T, channels]`` -> unit vectors ``[B, T - 4, embedding]``.

        The middle of run i is frame ``i + 2``.
        """
        runs = expression.unfold(1, self.config.frames, 1)
        # A shift of the whole run is the resting face of the person.
        runs = runs - runs.mean(dim=-1, keepdim=True)
        return F.normalize(self.network(runs.flatten(2)).float(), dim=-1)
