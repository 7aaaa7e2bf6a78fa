"""Engines: errors of the function, and a Ray that is missing or not reached; crashes are in test_prepare."""

from __future__ import annotations

import math
import signal
import sys

import pytest

from s3dnerf.data.engines import connect_ray, run_in_processes, run_on_ray
from s3dnerf.errors import UserError


@pytest.mark.slow
def test_errors_of_the_function_end_a_ray_run() -> None:
    ray = pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    results = run_on_ray(math.sqrt, [4.0, -1.0], "local", workers=1)
    with pytest.raises(ValueError, match="domain error"):
        dict(results)
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_no_item_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(run_in_processes(math.sqrt, [], workers=2)) == []


def test_missing_ray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as caught:
        connect_ray("local", 1)
    assert "s3dnerf[ray]" in caught.value.hint


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def refuse(**options: object) -> None:
        assert options["address"] == "10.0.0.1:6379" and "num_cpus" not in options
        raise ConnectionError("no answer\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="no answer") as caught:
        connect_ray("10.0.0.1:6379", 4)
    assert "ray start" in caught.value.hint
