"""Videos over HTTP: round trip, refusals, limits, cancelling, and what is left behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from s3dnerf.errors import UserError
from s3dnerf.media.credentials import ContentCredentials
from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.render_options import RenderOptions
from s3dnerf.serving.jobs import Job
from s3dnerf.serving.marks import VideoMarks
from tests.media.test_provenance import make_chain, read_credentials
from tests.serving.conftest import SPEECH, CachedPipeline, encode_wav, list_files, wait_for

Start = Callable[..., TestClient]


def ask(client: TestClient, image: bytes | None, audio: bytes | None, **fields: str) -> tuple[int, dict]:
    files = {name: (f"../../{name}", data) for name, data in (("image", image), ("audio", audio)) if data is not None}
    answer = client.post("/v1/render", files=files or {"nothing": b""}, data=fields)
    return answer.status_code, answer.json()


def read_status(client: TestClient, id: str) -> str:
    return client.get(f"/v1/render/{id}").json()["status"]


def test_a_picture_and_speech_become_a_video(
    client: TestClient, picture: bytes, wav: bytes, tiny_pipeline: CachedPipeline, tmp_path: Path
) -> None:
    status, job = ask(client, picture, wav, pose="static", turn="10 -5", seed="3", side_by_side="false", blink="12")
    assert status == 202 and job["status"] in ("waiting", "running")
    wait_for(lambda: read_status(client, job["id"]) == "done")
    described = client.get(f"/v1/render/{job['id']}").json()
    assert (described["frames"], described["frames_done"], described["progress"]) == (30, 30, 1.0)
    answer = client.get(described["result"])
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "video.mp4").write_bytes(answer.content)
    assert probe_video(tmp_path / "video.mp4").has_audio
    expected = next(iter(tiny_pipeline(picture, wav, RenderOptions(pose="static", turn=(10, -5), seed=3, blink=12))))
    shown = next(iter(stream_frames(tmp_path / "video.mp4")))
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 6
    assert [path.suffix for path in list_files(client)] == [".mp4"]
    assert client.delete(f"/v1/render/{job['id']}").status_code == 204
    assert list_files(client) == []
    assert client.get(described["result"]).status_code == 404


def test_a_picture_is_shown_behind_the_person(client: TestClient, picture: bytes, wav: bytes, tmp_path: Path) -> None:
    green = io.BytesIO()
    Image.new("RGB", (64, 64), (0, 200, 0)).save(green, "PNG")
    files = {"image": picture, "audio": wav, "background_image": green.getvalue()}
    answer = client.post("/v1/render", files=files, data={"pose": "static", "background": "transparent"})
    id = answer.json()["id"]
    wait_for(lambda: read_status(client, id) == "done")
    (tmp_path / "video.mp4").write_bytes(client.get(f"/v1/render/{id}/result").content)
    corner = next(iter(stream_frames(tmp_path / "video.mp4")))[:6, :6].mean((0, 1))
    assert corner == pytest.approx([0, 200, 0], abs=12)
    assert [path.suffix for path in list_files(client)] == [".mp4"]


def test_videos_carry_the_marks_of_the_server(
    start: Start, picture: bytes, wav: bytes, tiny_pipeline: CachedPipeline, tmp_path: Path
) -> None:
    pytest.importorskip("c2pa", reason='pip install "s3dnerf[provenance]"')
    client = start(marks=VideoMarks("AI", make_chain(tmp_path)))
    assert ask(client, picture, wav, format="webm")[0] == 422
    id = ask(client, picture, wav, pose="static", blink="off")[1]["id"]
    wait_for(lambda: read_status(client, id) == "done")
    path = tmp_path / "video.mp4"
    path.write_bytes(client.get(f"/v1/render/{id}/result").content)
    assert read_credentials(path, tmp_path / "root.pem")["validation_state"] == "Trusted"
    plain = next(iter(tiny_pipeline(picture, wav, pose="static", blink="off"))).astype(int)
    change = np.abs(next(iter(stream_frames(path))) - plain).max(axis=2)
    middle = len(plain) // 2
    assert change[middle:, middle:].max() > 60 > change[:middle, :middle].max()
    still = client.post("/v1/stills", files={"image": picture})
    change = np.abs(np.asarray(Image.open(io.BytesIO(still.content))).astype(int) - plain).max(axis=2)
    assert change[middle:, middle:].max() > 60


def test_marks_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.pem"):
        VideoMarks(None, ContentCredentials(tmp_path / "none.pem", tmp_path / "none.pem"))
    with pytest.raises(UserError, match="empty"):
        VideoMarks(" ")


def test_a_transparent_video_is_webm(client: TestClient, picture: bytes, wav: bytes) -> None:
    status, job = ask(client, picture, wav, background="transparent", format="mp4")
    assert status == 422 and "webm" in job["error"]
    status, job = ask(client, picture, wav, background="transparent")
    wait_for(lambda: read_status(client, job["id"]) == "done")
    assert client.get(f"/v1/render/{job['id']}/result").headers["content-type"] == "video/webm"


WRONG = {
    "text as an image": ({"image": b"no picture at all"}, {}, 415, "image"),
    "a picture as sound": ({"audio": "picture"}, {}, 415, "audio"),
    "an empty file": ({"audio": b""}, {}, 415, "empty"),
    "no samples": ({"audio": encode_wav(np.zeros(0))}, {}, 422, "0 samples"),
    "silence": ({"audio": encode_wav(np.zeros(16000))}, {}, 422, "silent"),
    "long sound": ({"audio": SPEECH.read_bytes()}, {}, 413, "4 s"),
    "an unknown option": ({}, {"poze": "idle"}, 422, "pose"),
    "a wrong choice": ({}, {"framing": "round"}, 422, "framing"),
    "no number": ({}, {"size": "big"}, 422, "size"),
    "out of range": ({}, {"turn": "90 0"}, 422, "turn"),
    "a file of the server": ({}, {"pose": str(SPEECH)}, 422, "motion"),
    "a file that is not there": ({}, {"pose": "/no/such/file"}, 422, "motion"),
    "a camera of the server": ({}, {"camera": "path.json"}, 422, "orbit"),
    "a list of blinks of the server": ({}, {"blink": "/etc/hostname"}, 422, "blinks a minute"),
    "a background of the server": ({}, {"background": "/etc/hostname"}, 422, "color"),
    "overrides of the server": ({}, {"overrides": "/etc/hostname"}, 422, "overrides"),
    "no switch": ({}, {"side_by_side": "perhaps"}, 422, "side_by_side"),
    "a rate that is not known": ({}, {"fps": "26"}, 422, "fps"),
    "an unknown picture": ({"image": None}, {"portrait": "../../etc/passwd"}, 404, "picture"),
    "no picture": ({"image": None}, {}, 422, "image"),
    "no sound": ({"audio": None}, {}, 422, "audio"),
    "a video that is none": ({"motion": b"text"}, {}, 415, "motion"),
    "a background that is none": ({"background_image": b"text"}, {}, 415, "background_image"),
    "an unknown file": ({"shell": b"text"}, {}, 422, "shell"),
}


@pytest.fixture(scope="module")
def shared(tiny_pipeline: CachedPipeline) -> TestClient:
    """One server for requests that change nothing."""
    from s3dnerf.serving.application import make_application
    from s3dnerf.serving.settings import ServerSettings

    limits = {"upload_megabytes": 1, "sound_seconds": 4, "picture_megapixels": 1}
    with TestClient(make_application(tiny_pipeline, ServerSettings(**limits))) as client:
        yield client


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_get_one_sentence_and_leave_nothing(
    name: str, shared: TestClient, picture: bytes, wav: bytes
) -> None:
    changes, fields, status, word = WRONG[name]
    content = {"image": picture, "audio": wav, **changes}
    content = {name: picture if data == "picture" else data for name, data in content.items() if data is not None}
    answer = shared.post("/v1/render", files={name: ("x", data) for name, data in content.items()}, data=fields)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]
    assert list(answer.json()) == ["error"] and "\n" not in message
    assert word in message
    assert str(shared.app.state.server.storage.folder) not in message
    assert list_files(shared) == []


def test_large_pictures_are_refused_before_they_are_decoded(shared: TestClient, wav: bytes) -> None:
    file = io.BytesIO()
    Image.new("L", (1200, 1000)).save(file, "PNG")
    status, answer = ask(shared, file.getvalue(), wav)
    assert status == 413 and "1200 x 1000" in answer["error"]


@pytest.mark.parametrize("stated", [True, False])
def test_large_requests_are_refused_whether_or_not_they_state_their_length(
    stated: bool, shared: TestClient, picture: bytes
) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + bytes(2**20) + b"\r\n--x--\r\n"
    )
    blocks = (body[first : first + 2**16] for first in range(0, len(body), 2**16))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = shared.post("/v1/render", content=body if stated else blocks, headers=headers)
    assert answer.status_code == 413 and "1 MB" in answer.json()["error"]


def test_other_bodies_and_pages_of_other_sites_are_refused(shared: TestClient) -> None:
    assert shared.post("/v1/render", json={}).status_code == 415
    assert shared.post("/v1/render", headers={"Origin": "http://evil.example"}).status_code == 403
    assert shared.get("/v1/nothing").json() == {"error": "Not Found"}


def test_a_picture_without_a_face_is_refused(shared: TestClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (200, 200), "gray").save(file, "PNG")
    answer = shared.post("/v1/portraits", files={"image": file.getvalue()})
    assert answer.status_code == 422 and answer.json()["error"].startswith("image: shows no face")
    assert list_files(shared) == []


def test_jobs_fail_with_a_sentence_that_names_no_path(
    client: TestClient, picture: bytes, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Job) -> None:
        raise UserError(job.image.path, f"is worse than {job.audio.path}", "Take another.")

    monkeypatch.setattr(client.app.state.server.jobs, "render", fail)
    _, job = ask(client, picture, wav)
    wait_for(lambda: read_status(client, job["id"]) == "failed")
    message = client.get(f"/v1/render/{job['id']}").json()["error"]
    assert message == "image: is worse than audio. Take another."
    assert client.get(f"/v1/render/{job['id']}/result").status_code == 409
    assert list_files(client) == []


def test_an_uploaded_picture_is_encoded_once_and_turned(
    client: TestClient, picture: bytes, wav: bytes, tiny_pipeline: CachedPipeline
) -> None:
    calls = tiny_pipeline.calls
    answer = client.post("/v1/portraits", files={"image": picture})
    assert answer.status_code == 201 and (answer.json()["width"], answer.json()["height"]) == (340, 300)
    id = answer.json()["id"]
    stills = [client.post("/v1/stills", data={"portrait": id, "turn": f"{x} 0"}) for x in (0, 30)]
    assert [still.headers["content-type"] for still in stills] == ["image/jpeg"] * 2
    shown = [np.asarray(Image.open(io.BytesIO(still.content))).astype(int) for still in stills]
    assert np.abs(shown[0] - shown[1]).mean() > 1
    _, job = ask(client, None, wav, portrait=id)
    wait_for(lambda: read_status(client, job["id"]) == "done")
    assert tiny_pipeline.calls == calls + 1
    assert client.delete(f"/v1/portraits/{id}").status_code == 204
    assert client.post("/v1/stills", data={"portrait": id}).status_code == 404
    assert [path.suffix for path in list_files(client)] == [".mp4"]


def test_what_limits_a_picture_is_told(
    client: TestClient, picture: bytes, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/v1/portraits", files={"image": picture}).json()["notes"] == []
    monkeypatch.setattr("s3dnerf.pipeline.describe_limits", lambda faces: ["the eyes are closed"])
    other = io.BytesIO()  # which no other test has encoded
    Image.open(io.BytesIO(picture)).save(other, "JPEG", quality=70)
    assert client.post("/v1/portraits", files={"image": other.getvalue()}).json()["notes"] == ["the eyes are closed"]
    _, job = ask(client, other.getvalue(), wav)
    wait_for(lambda: read_status(client, job["id"]) == "done")
    assert client.get(f"/v1/render/{job['id']}").json()["notes"] == ["the eyes are closed"]


def test_several_pictures_of_one_person_are_one_portrait(
    client: TestClient, picture: bytes, wav: bytes, tiny_pipeline: CachedPipeline, tmp_path: Path
) -> None:
    mirrored = io.BytesIO()
    Image.open(io.BytesIO(picture)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "PNG")
    both = [("image", picture), ("image", mirrored.getvalue())]
    id = client.post("/v1/portraits", files=both).json()["id"]
    assert len(list_files(client)) == 2
    _, job = ask(client, None, wav, portrait=id, pose="static", turn="-20 0", seed="3", blink="off")
    wait_for(lambda: read_status(client, job["id"]) == "done")
    (tmp_path / "video.mp4").write_bytes(client.get(f"/v1/render/{job['id']}/result").content)
    shown = next(iter(stream_frames(tmp_path / "video.mp4")))
    options = RenderOptions(pose="static", turn=(-20, 0), seed=3, blink="off")
    expected = next(iter(tiny_pipeline([part for _, part in both], wav, options)))
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 6
    assert client.delete(f"/v1/portraits/{id}").status_code == 204
    assert [path.suffix for path in list_files(client)] == [".mp4"]


def test_what_is_wrong_with_further_pictures_is_said_of_them(shared: TestClient, picture: bytes, wav: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (200, 200), "gray").save(file, "PNG")
    answer = shared.post("/v1/portraits", files=[("image", picture), ("image", file.getvalue())])
    assert answer.status_code == 422 and answer.json()["error"].startswith("image 2: shows no face")
    answer = shared.post("/v1/portraits", files=[("image", picture), ("image", b"no picture")])
    assert answer.status_code == 415 and answer.json()["error"].startswith("image 2: ")
    answer = shared.post("/v1/render", files=[("image", picture), ("audio", wav), ("audio", wav)])
    assert answer.status_code == 422 and answer.json()["error"].startswith("audio: is sent twice")
    assert list_files(shared) == []


def test_limits_of_jobs_and_cancelling(
    start: Start, picture: bytes, wav: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(waiting_jobs=2, client_jobs=3)
    jobs = client.app.state.server.jobs
    render, held = jobs.render, []

    def hold(job: Job) -> None:
        """Render frames without end."""
        held.append(job)
        while True:
            job.check()
            job.cancelled.wait(0.01)

    monkeypatch.setattr(jobs, "render", hold)
    first = ask(client, picture, wav)[1]["id"]
    wait_for(lambda: read_status(client, first) == "running")
    second, third = (ask(client, picture, wav)[1]["id"] for _ in range(2))
    assert [read_status(client, id) for id in (second, third)] == ["waiting"] * 2
    status, answer = ask(client, picture, wav)
    assert status == 503 and "2 videos wait" in answer["error"]
    assert client.delete(f"/v1/render/{third}").status_code == 204
    third = ask(client, picture, wav)[1]["id"]
    jobs.settings = type(jobs.settings)(waiting_jobs=9, client_jobs=3)
    answer = client.post("/v1/render", files={"image": picture, "audio": wav})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    health = client.get("/healthz").json()
    assert (health["jobs_running"], health["jobs_waiting"]) == (1, 2)
    monkeypatch.setattr(jobs, "render", render)
    assert client.delete(f"/v1/render/{first}").status_code == 204
    wait_for(lambda: read_status(client, second) == read_status(client, third) == "done")
    assert sorted(path.suffix for path in list_files(client)) == [".mp4"] * 2
    text = client.get("/metrics").text
    assert 's3dnerf_jobs_total{status="done"} 2.0' in text and 's3dnerf_jobs_total{status="cancelled"} 1.0' in text
    assert 'path="/v1/render/{id}"' in text and first not in text


def test_two_jobs_at_once_make_the_same_video(start: Start, picture: bytes, wav: bytes) -> None:
    client = start(jobs_at_once=2)
    ids = [ask(client, picture, wav)[1]["id"] for _ in range(2)]
    wait_for(lambda: all(read_status(client, id) == "done" for id in ids))
    first, second = (client.get(f"/v1/render/{id}/result").content for id in ids)
    assert len(first) > 1000 and first == second


def test_jobs_that_take_too_long_are_ended_and_results_expire(start: Start, picture: bytes, wav: bytes) -> None:
    client = start()
    jobs = client.app.state.server.jobs
    jobs.settings = type(jobs.settings)(job_seconds=1, result_seconds=1)

    def hold(job: Job) -> None:
        while True:
            job.check()

    jobs.render = hold
    id = ask(client, picture, wav)[1]["id"]
    wait_for(lambda: read_status(client, id) == "failed")
    assert "longer than the server allows" in client.get(f"/v1/render/{id}").json()["error"]
    jobs.expire(jobs.jobs[id].ended + 2)
    assert client.get(f"/v1/render/{id}").status_code == 404


def test_uploads_end_when_the_room_is_full_and_pictures_expire(start: Start, picture: bytes) -> None:
    client = start()
    storage = client.app.state.server.storage
    id = client.post("/v1/portraits", files={"image": picture}).json()["id"]
    storage.name_file().write_bytes(b"")
    with storage.name_file().open("wb") as file:
        file.truncate(3 * 10**9)
    assert client.post("/v1/portraits", files={"image": picture}).status_code == 503
    storage.expire(storage.pictures[id].used + 3601)
    assert client.delete(f"/v1/portraits/{id}").status_code == 404


def test_the_description_is_made_from_the_options(shared: TestClient) -> None:
    form = shared.get("/openapi.json").json()["paths"]["/v1/render"]["post"]["requestBody"]["content"]
    properties = form["multipart/form-data"]["schema"]["properties"]
    listed = {entry["name"]: entry for entry in shared.get("/v1/options").json()}
    assert "overrides" not in listed and listed["camera"]["choices"] == ["", "orbit"]
    assert set(listed) <= set(properties) and {"image", "audio", "motion"} <= set(properties)
    assert properties["liveliness"]["maximum"] == 2.0 and properties["show"]["enum"][0] == "color"
    # The page shows the help texts, where nobody types options.
    assert not [name for name, entry in listed.items() if "--" in entry["help"]]
    assert listed["pose"]["choices"] == ["static", "idle", "speech"]
    assert shared.get("/docs").status_code == 200
