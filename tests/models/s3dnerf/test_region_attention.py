"""Slot attention: slots share every position, and aggregate only the positions that they attend to."""

from __future__ import annotations

import torch

from s3dnerf.models.s3dnerf.region_attention import RegionSlotAttention


def test_claims_on_a_position_sum_to_one(one_thread: None) -> None:
    found = RegionSlotAttention(inputs=5, regions=6, width=16)(torch.randn(2, 5, 4, 7))
    assert found.tokens.shape == (2, 6, 16)
    assert found.attention.shape == (2, 6, 4, 7)
    torch.testing.assert_close(found.attention.exp().sum(dim=1), torch.ones(2, 4, 7))


def test_tokens_depend_on_the_features_and_not_on_the_rest_of_the_batch() -> None:
    attention = RegionSlotAttention(inputs=3, regions=4, width=8)
    features = torch.randn(3, 3, 5, 5)
    tokens = attention(features).tokens
    torch.testing.assert_close(attention(features[2:]).tokens, tokens[2:], atol=1e-5, rtol=1e-4)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_slots_know_where_they_look() -> None:
    # The features of all positions are equal, so only their coordinates distinguish them.
    torch.manual_seed(0)
    attention = RegionSlotAttention(inputs=3, regions=4, width=8)(torch.zeros(1, 3, 6, 6)).attention
    assert attention[0, 0].std() > 1e-3
