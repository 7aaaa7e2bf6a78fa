"""The probe of the source expression finds relations that are hidden in synthetic faces."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from s3dnerf.face.camera import load_canonical_face
from s3dnerf.face.points import KEPT_POINTS
from s3dnerf.models.s3dnerf.source_expression import SourceExpression

TOOLS = Path(__file__).resolve().parents[1] / "tools"
POINTS = len(KEPT_POINTS)


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module("probe_expression")


@pytest.fixture(scope="module")
def faces(probe: ModuleType) -> object:
    """Eight people, two clips each of twelve frames. The lips of a person differ from those of others as they move."""
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(8).repeat_interleave(24)
    clip = torch.arange(16).repeat_interleave(12)
    shape, moved = torch.zeros(8, POINTS, 3), torch.zeros(192, POINTS, 3)
    for point, axis in probe.COORDINATES:
        shape[:, point, axis] = 0.05 * torch.randn(8, generator=generator)
        moved[:, point, axis] = 0.05 * torch.randn(192, generator=generator)
    moved = (moved.view(16, 12, POINTS, 3) - moved.view(16, 12, POINTS, 3).mean(dim=1, keepdim=True)).flatten(0, 1)
    face = shape[person] + moved
    return probe.Faces(person, clip, face, face, moved, torch.full((192,), 1 / 24))


def test_people_are_left_out_of_the_fit_that_estimates_them(probe: ModuleType, faces: object) -> None:
    masks = probe.split_people(faces.person)
    assert torch.stack(masks).sum(dim=0).eq(1).all()
    for mask in masks:
        assert not set(faces.person[mask].tolist()) & set(faces.person[~mask].tolist())
    # Half of the variance is expression, so half of a displacement is the best estimate.
    left_out, others = faces.select(masks[0]), faces.select(~masks[0])
    estimate = probe.select_coordinates(probe.fit_estimator(others)(left_out.portrait))
    wanted = probe.select_coordinates(left_out.portrait)
    slope = (estimate * wanted).sum() / wanted.square().sum()
    assert 0.2 < slope < 0.8


def test_the_best_factor_and_the_explained_variance_by_hand(probe: ModuleType) -> None:
    true, estimate = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    assert probe.compute_best_factor(true, estimate, torch.tensor([1.0, 1.0])) == pytest.approx(1.0)
    assert probe.compute_best_factor(true, estimate, torch.tensor([1.0, 3.0])) == pytest.approx(1.25)
    explained = probe.compute_explained(true[:, None], estimate[:, None], torch.tensor([1.0, 3.0]))
    assert explained == pytest.approx(1.0 - (1.0 + 3.0) / (1.0 + 27.0))


def test_groups_have_their_relation(probe: ModuleType, faces: object) -> None:
    for relation in probe.RELATIONS:
        groups = torch.tensor(probe.draw_groups(faces, relation, 3, 0))
        assert groups.shape == (probe.GROUPS, 3)
        same_person, same_clip = (part[groups[:, 1:]] == part[groups[:, :1]] for part in (faces.person, faces.clip))
        assert same_clip.all() if relation == "same clip" else not same_clip.any()
        assert not same_person.any() if relation == "other people" else same_person.all()
        assert (groups[:, 0] != groups[:, 1]).all() and (groups[:, 1] != groups[:, 2]).all()
    assert len(faces.person[groups[:, 0]].unique()) == 8


def test_no_group_is_drawn_where_no_clip_has_the_relation(probe: ModuleType, faces: object) -> None:
    first_clips = faces.select(faces.clip % 2 == 0)
    assert probe.draw_groups(first_clips, "other clips of the person", 2, 0) == []


def test_the_table_prefers_what_images_of_one_person_share(
    probe: ModuleType, faces: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "GROUPS", 200)
    # The shape cancels in half the difference of two faces, which has half of either expression: 1 - 1/4 - 1/4 is left.
    probe.print_groups([(faces, SourceExpression(POINTS))], 0.0)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    explained = {row[0]: [float(cell.strip(" |")) for cell in row[3:]] for row in rows}
    two = explained["| 1, same clip"]
    assert two[0] == 0.0 and two[-1] == pytest.approx(0.5, abs=0.1)
    assert explained["| 4, other clips of the person"][-1] > two[-1] + 0.1
    assert explained["| 1, other people"][-1] < two[-1] - 0.2


def test_height_of_the_opening_is_that_of_the_canonical_face(probe: ModuleType, faces: object) -> None:
    closed = dataclasses.replace(faces, portrait=torch.zeros_like(faces.portrait))
    upper, lower = (load_canonical_face()[point, 1] for point in (13, 14))
    assert probe.measure_height(closed)[0].item() == pytest.approx(upper - lower, abs=1e-6)
