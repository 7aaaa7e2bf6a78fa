"""Training runs on shards that are read through a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3dnerf.data.batch import Batch
from s3dnerf.data.shards import write_shards
from s3dnerf.structures import map_tensors
from s3dnerf.training.config import S3DNeRFConfig
from s3dnerf.training.s3dnerf import S3DNeRFTrainer


def list_tensors(batch: Batch) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    map_tensors(batch, lambda x: tensors.append(x) or x)
    assert len(tensors) > 10
    return tensors


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_batches(
    load_smoke: Callable[..., S3DNeRFConfig], drawn_clips: Path, tmp_path: Path
) -> None:
    write_shards(drawn_clips, tmp_path / "shards", 1)
    words = (
        "--data.root",
        f"pipe:cat {shlex.quote(str(tmp_path))}/shards/{{}}",
        "--data.workers",
        "1",
        "--data.held_out_people",
        "1",
    )
    words += ("--train.steps", "4", "--train.gradient_accumulation_steps", "2", "--train.motion_steps", "2")
    straight, resumed = (S3DNeRFTrainer(load_smoke(*words), tmp_path / "run") for _ in range(2))
    straight.fit_source_expression()
    assert {*straight.data.people, *straight.val_data.people} == {"ann", "ben"}
    resumed.step = 1
    batches, rest = list(straight.iterate_batches()), list(resumed.iterate_batches())
    assert [len(group) for group in batches] == [2] * 4 and len(rest) == 3
    for one, other in zip(batches[1:], rest, strict=True):
        for batch, again in zip(one, other, strict=True):
            torch.testing.assert_close(list_tensors(again), list_tensors(batch), rtol=0, atol=0)
