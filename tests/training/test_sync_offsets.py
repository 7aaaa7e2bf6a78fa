"""Cross-fitted offsets of training clips: the table that is written, and balanced halves."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import yaml

from s3dnerf.config import load_config
from s3dnerf.data.clip import INFO_FILE
from s3dnerf.training.sync import SyncConfig
from s3dnerf.training.sync_data import read_clips
from s3dnerf.training.sync_offsets import sort_by_frames, write_offsets

SMALL = (
    *("--model.audio.features", "logmel", "--model.audio.width", "16", "--model.audio.context", "320"),
    *("--model.widths", "[8, 8, 8, 8]", "--model.frame_width", "16", "--model.embedding", "16"),
    *("--data.segments", "2", "--data.versions", "1", "--train.precision", "float32", "--train.steps", "2"),
)


def test_every_clip_gets_an_offset_from_the_other_half(drawn_clips: Path, one_thread: None, tmp_path: Path) -> None:
    root, table = tmp_path / "clips", tmp_path / "offsets.csv"
    for name, source in (("ann_0", "ann_0"), ("ben_0", "ben_0"), ("dan_0", "ben_0"), ("eve_0", "ann_0")):
        shutil.copytree(drawn_clips / source, root / name)
        info = json.loads((root / name / INFO_FILE).read_text())
        (root / name / INFO_FILE).write_text(json.dumps(info | {"id": name, "person": name[:3]}))
    before = tmp_path / "before.csv"
    before.write_text("id,offset,margin,frames\ndan_0,20,0.5,30\n")
    config = load_config(SyncConfig, "sync.yaml", ["--data.root", str(root), "--data.offsets", str(before), *SMALL])
    write_offsets(config, tmp_path / "run", table)
    with table.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ann_0", "ben_0", "dan_0", "eve_0"]
    assert [row["frames"] for row in rows.values()] == ["40", "30", "30", "40"]
    # Earlier corrections are added to the new offsets, which are at most 5 frames.
    assert abs(int(rows["dan_0"]["offset"]) - 20) <= 5 >= abs(int(rows["ben_0"]["offset"]))
    trained = [yaml.safe_load((tmp_path / "run" / half / "config.yaml").read_text()) for half in ("half_1", "half_2")]
    assert [run["data"]["left_out"] for run in trained] == [["ann", "ben"], ["eve", "dan"]]


def test_halves_are_fair(drawn_clips: Path, one_thread: None) -> None:
    words = ["--data.root", str(drawn_clips), "--data.offsets", "null", *SMALL]
    config = load_config(SyncConfig, "sync.yaml", words)
    assert sort_by_frames(read_clips(config.data, config.model, config.seed)) == ["ann", "ben"]
