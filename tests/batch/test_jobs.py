"""Tables of jobs: cells become options as on the command line, and rows with mistakes get a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3dnerf.batch.jobs import Job, read_jobs
from s3dnerf.cli.batch import make_row_parser
from s3dnerf.errors import UserError
from s3dnerf.render_options import RenderOptions

DEFAULTS = RenderOptions(blink="off")


def read(folder: Path, *lines: str) -> list[Job]:
    table = folder / "jobs.csv"
    table.write_text("\n".join(lines) + "\n", "utf-8")
    return read_jobs(table, make_row_parser(DEFAULTS))


def test_cells_are_options_and_empty_cells_are_defaults(tmp_path: Path) -> None:
    jobs = read(
        tmp_path,
        "\ufeffimage,audio,out,turn,pose,max-side,liveliness,blink,side_by_side,fps",
        "a b.png,a.wav,out/1.mp4,-20 5,static,,,,no,",
        "",
        '"c,d.png; e.png",a.wav,out/2.mp4,,speech,640,0.5,auto,yes,50',
    )
    assert jobs == [
        Job(2, (Path("a b.png"),), Path("a.wav"), Path("out/1.mp4"), DEFAULTS.change(turn=(-20.0, 5.0), pose="static")),
        Job(
            4,
            (Path("c,d.png"), Path("e.png")),
            Path("a.wav"),
            Path("out/2.mp4"),
            RenderOptions(pose="speech", max_side=640, liveliness=0.5, side_by_side=True, fps=50),
        ),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,a.wav,x.mp4,90 0,,", "turns the head further"),
        ("a.png,a.wav,x.mp4,4,,", "--turn"),
        ("a.png,a.wav,x.mp4,,none.mp4,", "is no video file"),
        ("a.png,a.wav,x.mp4,,,many", "--face many: is not a whole number"),
        ("a.png,a.wav,x.mp4,,,0", "--face 0: is too small"),
        ("a.png,a.wav,x.mp4,,,,maybe", "--side-by-side maybe: is neither yes nor no"),
        ("a.png,,x.mp4,,,", "the column audio is empty"),
        ("a.png,a.wav", "the column out is empty"),
        ("a.png,a.wav,x.mp4,,,,,1,2", "more cells"),
        ("a.png,a.wav,good.mp4,,,", "is written by line 3 too"),
        ("a.png,a.wav,./b.png,,,", "is read by line 3"),
    ],
)
def test_rows_with_mistakes_get_a_reason_and_the_others_stay(row: str, reason: str, tmp_path: Path) -> None:
    good, bad = read(
        tmp_path, "image,audio,out,turn,pose,face,side-by-side", "# ,,,,,", "b.png,a.wav,good.mp4,,,", row
    )[1:]
    assert good.reason is None and good.line == 3
    assert bad.reason is not None and reason in bad.reason and len(bad.reason.splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("image,audio", "a,b"), "has no column 'out'"),
        (("image,audio,out,tturn", "a,b,c,d"), "Did you mean turn"),
        (("image,audio,out,image", "a,b,c,d"), "same column twice"),
        (("image,audio,out",), "has no job"),
        (("",), "has no column 'image'"),
        (('image,audio,out\n"a"b,c', ""), "is not a CSV table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(lines: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        read(tmp_path, *lines)
    with pytest.raises(UserError, match="does not exist"):
        read_jobs(tmp_path / "none.csv", make_row_parser(DEFAULTS))
