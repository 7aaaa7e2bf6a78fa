"""The encoder of Moonshine, against that of transformers."""

from __future__ import annotations

import pytest
import torch

from s3dnerf.models.speech_features import MOONSHINE, FixedNorm, Moonshine, read_quantized


def test_hidden_states_are_those_of_transformers(speech: torch.Tensor, one_thread: None) -> None:
    from transformers import MoonshineConfig
    from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

    weights = read_quantized(MOONSHINE)
    config = MoonshineConfig(hidden_size=288, intermediate_size=1152, encoder_num_hidden_layers=3)
    config.encoder_hidden_act = "gelu"
    theirs = MoonshineEncoder(config)
    theirs.groupnorm, theirs.layer_norm = FixedNorm(288), torch.nn.LayerNorm(288, elementwise_affine=False)
    theirs.load_state_dict(weights)
    sound = torch.stack([speech[:32000], speech[8000:40000]])
    with torch.no_grad():
        expected = theirs.eval()(sound).last_hidden_state
        found = Moonshine().network(sound)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def leave_nans() -> None:
    """Fill blocks of memory of many sizes with NaN and free them, so that later operators find NaN in new blocks."""
    sizes = [factor << power for power in range(5, 21) for factor in (2, 3)]
    kinds = (torch.float32, torch.bfloat16)
    kept = [torch.full((size,), float("nan"), dtype=kind) for size in sizes for kind in kinds for _ in range(3)]
    del kept


@pytest.mark.parametrize("frames", [9, 21, 75])
def test_what_lies_in_memory_does_not_reach_the_features(speech: torch.Tensor, frames: int) -> None:
    # It did with AMX and several threads: a NaN times zero was added to the last column of the first convolution, which
    # counts at these lengths.
    moonshine, sound = Moonshine(), speech[None, : 23040 + 640 * (frames - 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            expected = moonshine(sound)
            for _ in range(5):
                leave_nans()
                assert torch.equal(moonshine(sound), expected)
    finally:
        torch.set_num_threads(threads)
    assert torch.isfinite(expected).all()
