"""Engines: errors of the function, ends of the main process, and a Ray that is missing; crashes are in test_prepare."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s3dnerf.data.engines import connect_ray, run_in_processes, run_on_ray
from s3dnerf.errors import UserError

RUN = """
import sys, time
from s3dnerf.data.engines import run_in_processes
from s3dnerf.interruption import raise_on_signals
from s3dnerf.media.files import atomic_write

def write(path):
    if path is not None:
        with atomic_write(path) as part:
            part.touch()
            print("writing", flush=True)
            for _ in range(1000):
                time.sleep(0.1)

if __name__ == "__main__":
    with raise_on_signals():
        list(run_in_processes(write, [None, sys.argv[1]], workers=int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "workers"), [(subprocess.Popen.kill, 2), (subprocess.Popen.terminate, 1)])
def test_workers_end_with_the_main_process(
    tmp_path: Path, end: Callable[[subprocess.Popen], None], workers: int
) -> None:
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(RUN, "utf-8")
    command = [sys.executable, str(script), str(out / "a.txt"), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        end(process)
        # The output ends when the last process that holds it does: an idle worker, a busy one and their helper.
        process.communicate(timeout=30)
    assert process.returncode != 0 and list(out.iterdir()) == []


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
