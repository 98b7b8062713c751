"""The demo as a server: what a stranger who speaks plain HTTP can and cannot get out of it."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from demo_process import DemoProcess, Visitor, serving
from depthvlm.hub_cards.space.demo import Demo

from depthvlm import DepthPredictor

ROOM = REPOSITORY / "depthvlm" / "assets" / "room.jpg"
PAGE = b"<script>alert(1)</script>"


@pytest.fixture(scope="module")
def served(nano: DepthPredictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Demo, str]]:
    with serving(nano, tmp_path_factory.mktemp("server"), new_tokens=16) as (demo, url):
        yield demo, url


@pytest.fixture
def visitor(served) -> Visitor:
    return Visitor(served[1])


def measure(visitor: Visitor) -> list[str]:
    """Measure the sample; the addresses of the files."""
    [path] = visitor.upload("view.jpg", ROOM.read_bytes(), "image/jpeg").json()
    measured = visitor.run("measure", visitor.photo(path), 571.8)
    assert measured["success"], measured
    written = visitor.run("write")
    assert written["success"], written
    return ["/" + address for address in re.findall('href="(gradio_api/file=[^"]+)"', written["output"]["data"][1])]


def test_files_are_for_those_who_have_their_address(served, visitor):
    addresses = measure(visitor)
    assert {Path(address).suffix for address in addresses} == {".npy", ".png", ".ply", ".glb", ".json"}
    for address in addresses:
        [folder] = re.findall(r"/([A-Za-z0-9_-]{32})/view", address)
        assert visitor.client.get(address).status_code == 200

    stranger, kept = Visitor(served[1]), served[0].files.folder
    # The same picture, by another visitor: the uploads share an address, the results do not.
    assert not set(measure(stranger)) & set(addresses)
    for guess in (kept, kept / folder, kept / folder / "..", f"{kept}/*/view.glb"):
        assert stranger.client.get(f"/gradio_api/file={guess}").status_code == 403
    assert folder not in stranger.client.get("/config").text


def test_a_stranger_has_a_conversation_of_their_own(served, visitor):
    measure(visitor)
    assert visitor.run("ask", None, "Is this secret?")["success"]
    stranger = Visitor(served[1])
    for step in (stranger.run("ask", None, "What was asked?"), stranger.run("write")):
        assert not step["success"]
        assert "Measure a picture first" in step["output"]["error"]
    measure(stranger)
    answer = stranger.run("ask", None, "What was asked?")
    assert "secret" not in str(answer)


@pytest.mark.parametrize(
    "path",
    [
        *(f"/gradio_api/file={place}" for place in ("/etc/passwd", ROOM, "http://127.0.0.1:1/", "HTTPS://a.org/x.png")),
        *("/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/runs", "/monitoring", "/monitoring/summary", "/docs"),
    ],
)
def test_what_nobody_gets(visitor, path):
    assert visitor.client.get(path).status_code in (403, 404)


def test_no_step_is_offered_as_an_api(visitor):
    assert visitor.client.get("/gradio_api/info").json()["named_endpoints"] == {}
    answer = visitor.client.post(f"/gradio_api/run/{visitor.steps['measure']['id']}", json={"data": []})
    assert answer.status_code >= 400


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOM), "http://127.0.0.1:1/x.png", "../../etc/passwd"])
def test_no_file_of_the_server_or_of_another_one_is_measured(visitor, path):
    answer = visitor.join("measure", visitor.photo(path), 500.0)
    assert answer.status_code == 403
    assert "no file but your own upload" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["page.html", "drawing.svg", "page.xhtml", "script.js", "page.png"])
def test_no_upload_comes_back_as_a_page(visitor, name):
    [path] = visitor.upload(name, PAGE, "text/html").json()
    answer = visitor.client.get(f"/gradio_api/file={path}")
    assert answer.headers["content-type"] == ("image/png" if name.endswith("png") else "application/octet-stream")
    assert answer.headers["content-disposition"].startswith("inline" if name.endswith("png") else "attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    refused = visitor.run("measure", visitor.photo(path), None)
    assert not refused["success"]
    assert "not a picture that can be read here" in refused["output"]["error"]


def test_uploads_are_limited(visitor):
    answer = visitor.upload("large.png", bytes(21 * 2**20))
    assert (answer.status_code, answer.text) == (413, "At most 20 MB can be uploaded.")
    answer = visitor.client.post("/gradio_api/upload", content=iter([b"x"] * 3))
    assert (answer.status_code, answer.text) == (411, "An upload must say its length.")


def test_every_page_forbids_other_sites(visitor):
    for path in ("/", "/config", "/theme.css"):
        assert visitor.client.get(path).headers["content-security-policy"].startswith("default-src 'self' data: blob:;")
    assert "fonts.googleapis.com" not in visitor.client.get("/theme.css").text


@pytest.mark.slow
@pytest.mark.parametrize("end_by", [signal.SIGTERM, signal.SIGINT])
def test_everything_temporary_is_removed(tmp_path, request, end_by):
    server = DemoProcess(tmp_path, kept_seconds=10)
    request.addfinalizer(server.process.kill)
    assert server.folder.stat().st_mode & 0o777 == 0o700

    def files() -> set[Path]:
        return {path for path in server.folder.rglob("*") if path.is_file()}

    samples = files()
    visitor = Visitor(server.url)
    addresses = measure(visitor)
    assert [visitor.client.get(address).status_code for address in addresses] == [200] * 6  # something to remove
    end = time.monotonic() + 60
    while files() != samples and time.monotonic() < end:
        time.sleep(0.5)
    assert files() == samples
    assert not visitor.run("ask", None, "Still there?")["success"]
    server.stop(end_by)
    assert not server.folder.exists()
