"""The page of ``s3dnerf demo`` in a real browser: upload, render, play, turn, download, live, refusals, two users."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from s3dnerf.media.video import probe_video, stream_frames
from s3dnerf.serving.application import make_application
from s3dnerf.serving.settings import ServerSettings
from tests.serving.conftest import CachedPipeline, encode_wav, wait_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = ("--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
PATIENCE_MS = 120_000
"""Browser and model share the cores with other tests."""


@pytest.fixture(scope="module")
def address(tiny_pipeline: CachedPipeline) -> Iterator[str]:
    """Serve the page on a port of this machine."""
    settings = ServerSettings(stop_seconds=1, live_sessions=1, sound_seconds=4)
    config = uvicorn.Config(make_application(tiny_pipeline, settings, page=True), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def open_page(address: str, camera: Path, inputs: dict[str, str]) -> Iterator[Callable]:
    """Open the page in a window of its own. The camera sees a face, and the microphone hears speech."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}) is on the PATH; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    devices = (
        f"--use-file-for-fake-video-capture={camera}",
        f"--use-file-for-fake-audio-capture={inputs['speech.wav']}",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*SWITCHES, *devices])

        def open_page() -> object:
            # Conditions to wait for are evaluated in the page, which its policy forbids.
            page = browser.new_context(bypass_csp=True).new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.problems = []
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.goto(address)
            page.wait_for_selector("body[data-ready=yes]")
            return page

        yield open_page
        browser.close()


@pytest.fixture(scope="module")
def inputs(picture: bytes, sound: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    content = {"face.jpg": picture, "speech.wav": encode_wav(sound), "text.jpg": b"no picture"}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    Image.new("RGB", (64, 64), (0, 200, 0)).save(folder / "wall.png")
    mirrored = Image.open(io.BytesIO(picture)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(folder / "mirrored.png")
    Image.open(io.BytesIO(picture)).point(lambda level: 0.9 * level).save(folder / "dim.jpg")
    return {name: str(folder / name) for name in (*content, "wall.png", "mirrored.png", "dim.jpg")}


@pytest.fixture(scope="module")
def camera(picture: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write what the camera sees: an uncompressed video of 640 x 480 pixels with a face."""
    room = Image.new("RGB", (640, 480), (90, 110, 120))
    room.paste(Image.open(io.BytesIO(picture)), (150, 120))
    frame = cv2.cvtColor(np.asarray(room), cv2.COLOR_RGB2YUV_I420).tobytes()
    path = tmp_path_factory.mktemp("camera") / "face.y4m"
    path.write_bytes(b"YUV4MPEG2 W640 H480 F25:1 Ip A1:1 C420\n" + 5 * (b"FRAME\n" + frame))
    return path


def choose(page: object, inputs: dict[str, str], image: str = "face.jpg") -> None:
    page.set_input_files("#image", inputs[image])
    page.set_input_files("#audio", inputs["speech.wav"])


def test_a_video_is_rendered_played_turned_and_downloaded(
    open_page: Callable, inputs: dict[str, str], tmp_path: Path
) -> None:
    page = open_page()
    page.click("#render")
    assert "picture" in page.inner_text("#message")
    choose(page, inputs)
    assert page.evaluate("document.getElementById('portrait').naturalWidth") == 340
    page.select_option("#option-pose", "static")
    page.fill("#option-turn input >> nth=0", "10")
    page.click("#render")
    page.wait_for_selector("#download:not(.hidden)", state="visible")
    assert page.inner_text("#message") == "" and "30 of 30" in page.inner_text("#status")
    page.evaluate("document.getElementById('result').muted = true; document.getElementById('result').play()")
    page.wait_for_function("document.getElementById('result').currentTime > 0.3")
    assert page.evaluate("document.getElementById('result').duration") == pytest.approx(1.2, abs=0.1)
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "talking.mp4")
    assert probe_video(tmp_path / "talking.mp4").has_audio
    pixels = []
    for turn in ("-30", "30"):
        page.fill("#turn", turn)
        page.wait_for_selector(f"#still[data-turn='{turn}']")
        pixels.append(page.evaluate(READ_STILL))
    assert page.inner_text("#turned") == "30°"
    assert np.abs(np.subtract(*pixels)).mean() > 1
    assert page.problems == []


def test_several_pictures_of_one_person_are_taken_together(open_page: Callable, inputs: dict[str, str]) -> None:
    page = open_page()
    stills = []
    for names in (("face.jpg", "mirrored.png"), ("face.jpg",)):
        page.set_input_files("#image", [inputs[name] for name in names])
        assert page.inner_text("#others") == ("and 1 more of the same person" if len(names) == 2 else "")
        page.fill("#turn", "-30")
        page.wait_for_selector("#still[data-turn='-30']")
        stills.append(page.evaluate(READ_STILL))
        page.fill("#turn", "0")
        page.wait_for_selector("#still[data-turn='0']")
    assert np.abs(np.subtract(*stills)).mean() > 1
    assert page.inner_text("#message") == "" and page.problems == []


def test_what_limits_a_picture_is_shown_until_another_one_is_chosen(
    open_page: Callable, inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    monkeypatch.setattr("s3dnerf.pipeline.describe_limits", lambda faces: ["the eyes are closed"])
    page.set_input_files("#image", inputs["dim.jpg"])
    page.fill("#turn", "10")
    page.wait_for_selector("#still[data-turn='10']")
    assert page.inner_text("#notes") == "The picture: the eyes are closed."
    page.set_input_files("#image", inputs["face.jpg"])
    assert page.inner_text("#notes") == "" and page.problems == []


READ_STILL = """async () => {
  const still = document.getElementById("still");
  await still.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [still.naturalWidth, still.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(still, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_webcam_microphone_and_a_background_make_a_video(
    open_page: Callable, inputs: dict[str, str], tmp_path: Path
) -> None:
    page = open_page()
    page.click("#webcam")
    page.wait_for_function("document.getElementById('viewfinder').videoWidth === 640")
    page.click("#webcam")
    page.wait_for_function("document.getElementById('portrait').naturalWidth === 640")
    assert page.is_hidden("#viewfinder") and page.inner_text("#webcam") == "Webcam"
    page.click("#record")
    page.wait_for_function("document.getElementById('record').textContent === 'Stop recording'")
    page.wait_for_timeout(1500)
    page.click("#record")
    page.wait_for_selector("#heard:not(.hidden)", state="visible")
    page.set_input_files("#background", inputs["wall.png"])
    page.select_option("#option-pose", "static")
    page.click("#render")
    page.wait_for_selector("#download:not(.hidden)", state="visible")
    assert page.inner_text("#message") == ""
    page.wait_for_function("document.getElementById('result').duration > 0.8")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "talking.mp4")
    corner = next(iter(stream_frames(tmp_path / "talking.mp4")))[:6, :6].mean((0, 1))
    assert corner == pytest.approx([0, 200, 0], abs=12)
    assert page.problems == []


def test_wrong_files_are_explained(open_page: Callable, inputs: dict[str, str]) -> None:
    page = open_page()
    choose(page, inputs, "text.jpg")
    page.click("#render")
    page.wait_for_function("document.getElementById('message').textContent !== ''")
    assert "image: is not a picture" in page.inner_text("#message")
    assert page.is_enabled("#render")
    page.click("#example-audio")
    page.click("#example-image")
    page.wait_for_function("document.getElementById('portrait').naturalWidth === 512")
    page.click("#render")
    page.wait_for_function("document.getElementById('message').textContent !== ''")
    assert "longer than the limit of 4 s" in page.inner_text("#message")


def test_two_users_render_at_once(open_page: Callable, inputs: dict[str, str]) -> None:
    pages = [open_page(), open_page()]
    for page in pages:
        choose(page, inputs)
        page.click("#render")
    results = []
    for page in pages:
        page.wait_for_selector("#download:not(.hidden)", state="visible")
        results.append(page.get_attribute("#download", "href"))
    assert results[0] != results[1]


def test_the_face_is_live_and_a_second_user_is_told_to_wait(
    open_page: Callable, inputs: dict[str, str], address: str
) -> None:
    page, other = open_page(), open_page()
    for one in (page, other):
        one.set_input_files("#image", inputs["face.jpg"])
    page.click("#start")
    page.wait_for_function("document.getElementById('live').videoWidth > 0")
    page.wait_for_function("document.getElementById('live').currentTime > 0.5")
    tracks = "document.getElementById('live').srcObject.getTracks().map((track) => track.kind).sort().join()"
    assert page.evaluate(tracks) == "audio,video"
    other.click("#start")
    other.wait_for_function("document.getElementById('message').textContent !== ''")
    assert "1 live sessions" in other.inner_text("#message")
    page.click("#stop")
    page.wait_for_selector("#start:enabled")
    other.wait_for_timeout(500)
    wait_for(lambda: '"live_sessions":0' in other.request.get(f"{address}/healthz").text())
    assert page.problems == other.problems == []


def test_the_page_is_there_only_when_it_is_asked_for(start: Callable[..., TestClient]) -> None:
    assert start().get("/").status_code == 404
    client = start(page=True)
    answer = client.get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/examples/speech.wav").headers["content-type"] == "audio/wav"
    assert client.get("/static/../page.py").status_code == 404
