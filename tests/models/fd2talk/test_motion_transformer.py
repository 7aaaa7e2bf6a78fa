"""The diffusion transformer: alignment mask, reach, padding, known frames, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3dnerf.config import from_dict
from s3dnerf.errors import UserError
from s3dnerf.models.fd2talk.config import MotionTransformerConfig
from s3dnerf.models.fd2talk.motion_transformer import MotionCondition, MotionTransformer, encode_time

FRAMES, CHANNELS, SPEECH = 24, 5, 7
CONFIG = MotionTransformerConfig(
    width=16, blocks=2, heads=2, speech_past=2, speech_future=3, motion_reach=4, dropout=0.0
)


def make_transformer(config: MotionTransformerConfig = CONFIG, is_aligned: bool = True) -> MotionTransformer:
    torch.manual_seed(0)
    network = MotionTransformer(config, CHANNELS, SPEECH, is_aligned)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


def make_condition(frames: int = FRAMES, config: MotionTransformerConfig = CONFIG) -> MotionCondition:
    rng = torch.Generator().manual_seed(1)
    return MotionCondition(
        speech=torch.randn(2, config.speech_past + frames + config.speech_future, SPEECH, generator=rng),
        has_speech=torch.tensor([True, True]),
        liveliness=torch.tensor([0.3, -1.0]),
        known=torch.randn(2, frames, CHANNELS, generator=rng),
        is_known=torch.zeros(2, frames, dtype=torch.bool),
        valid=torch.ones(2, frames, dtype=torch.bool),
    )


def find_changes(before: Tensor, after: Tensor) -> list[int]:
    """Return the numbers of the frames that differ in any window."""
    return (before - after).abs().amax(dim=(0, 2)).gt(1e-5).nonzero().flatten().tolist()


NOISY = torch.randn(2, FRAMES, CHANNELS, generator=torch.Generator().manual_seed(2))
TIME = torch.tensor([0.2, 0.9])


def test_speech_reaches_only_its_own_frames_without_attention_to_motion() -> None:
    network = make_transformer(replace(CONFIG, motion_reach=0))
    condition = make_condition()
    speech = condition.speech.clone()
    speech[:, CONFIG.speech_past + 10] += 1.0
    changed = network(NOISY, TIME, replace(condition, speech=speech))
    # Frame t hears frames t - 2 to t + 3.
    assert find_changes(network(NOISY, TIME, condition), changed) == list(range(10 - 3, 10 + 2 + 1))


def test_without_the_alignment_mask_every_frame_hears_everything() -> None:
    network = make_transformer(replace(CONFIG, motion_reach=0), is_aligned=False)
    condition = make_condition()
    speech = condition.speech.clone()
    speech[:, CONFIG.speech_past + 10] += 1.0
    changed = network(NOISY, TIME, replace(condition, speech=speech))
    assert find_changes(network(NOISY, TIME, condition), changed) == list(range(FRAMES))


def test_motion_reaches_frames_within_its_distance_in_each_block() -> None:
    network = make_transformer(replace(CONFIG, blocks=1))
    noisy = NOISY.clone()
    noisy[:, 12] += 1.0
    condition = make_condition()
    assert find_changes(network(NOISY, TIME, condition), network(noisy, TIME, condition)) == list(range(8, 17))


def test_padding_changes_nothing() -> None:
    network, condition = make_transformer(), make_condition()
    valid = torch.arange(FRAMES).expand(2, FRAMES) < 17
    noisy = NOISY.clone()
    noisy[:, 17:] = 100.0
    short, loud = (network(x, TIME, replace(condition, valid=valid))[:, :17] for x in (NOISY, noisy))
    assert torch.allclose(short, loud, atol=1e-5)


def test_known_frames_are_returned_and_their_noise_is_ignored() -> None:
    network, condition = make_transformer(), make_condition()
    is_known = torch.arange(FRAMES).expand(2, FRAMES) < 6
    condition = replace(condition, is_known=is_known)
    noisy = NOISY.clone()
    noisy[:, :6] = 50.0
    first, second = network(NOISY, TIME, condition), network(noisy, TIME, condition)
    assert torch.equal(first, second)
    assert torch.equal(first[:, :6], condition.known[:, :6])
    other = network(NOISY, TIME, replace(condition, known=condition.known + 1.0))
    assert find_changes(first[:, 6:], other[:, 6:])


def test_hidden_speech_has_no_effect() -> None:
    network, condition = make_transformer(), make_condition()
    hidden = replace(condition, has_speech=torch.tensor([False, True]))
    loud = replace(hidden, speech=condition.speech * 3.0)
    first, second = network(NOISY, TIME, hidden), network(NOISY, TIME, loud)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", ["time", "liveliness"])
def test_the_output_depends_on(name: str) -> None:
    network, condition = make_transformer(), make_condition()
    before = network(NOISY, TIME, condition)
    if name == "time":
        after = network(NOISY, TIME + 0.05, condition)
    else:
        after = network(NOISY, TIME, replace(condition, liveliness=condition.liveliness + 0.5))
    assert (before - after).abs().max() > 1e-3


def test_a_new_network_predicts_no_motion_and_all_its_weights_learn() -> None:
    torch.manual_seed(0)
    network = MotionTransformer(CONFIG, CHANNELS, SPEECH)
    condition = replace(make_condition(), has_speech=torch.tensor([True, False]))
    assert network(NOISY, TIME, condition).abs().max() == 0.0
    trained = make_transformer().train()
    trained(NOISY, TIME, condition).square().sum().backward()
    unused = [name for name, value in trained.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert not unused


def test_it_runs_on_windows_of_other_lengths() -> None:
    network = make_transformer()
    condition = make_condition(1)
    assert network(NOISY[:, :1], TIME, condition).shape == (2, 1, CHANNELS)


def test_times_have_different_encodings() -> None:
    encoded = encode_time(torch.linspace(0, 1, 1001))
    assert encoded.shape == (1001, 64) and torch.cdist(encoded, encoded).add(10 * torch.eye(1001)).min() > 1e-2


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of heads"):
        from_dict(MotionTransformerConfig, {"width": 10, "heads": 4}, "test")
