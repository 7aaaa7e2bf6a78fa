"""The encoder of Moonshine, against that of transformers."""

from __future__ import annotations

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
