"""The demo under attack, over real HTTP on loopback: addresses, paths, sizes, routes, hosts, and what stays behind."""

import contextlib
import copy
import http.server
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio.processing_utils
import httpx
import pytest
import torch
from conftest import REPOSITORY
from demo_process import Visitor, serving
from depthvlm.hub_cards.space.guard import Refusal
from depthvlm.hub_cards.space.server import known_hosts
from depthvlm.hub_cards.space.visitors import Files, Limits

import depthvlm
from depthvlm.checkpoint import BUNDLED_MODEL

ROOM = (REPOSITORY / "depthvlm" / "assets" / "room.jpg").read_bytes()
BALLAST = 2**30  # bytes of weights; untouched zeros take no memory until someone copies them
LARGEST = 100_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    nano = depthvlm.load(BUNDLED_MODEL, device="cpu")
    nano.model.register_buffer("ballast", torch.zeros(BALLAST // 4))
    limits = {"file_bytes": LARGEST, "disk_bytes": 50 * LARGEST, "new_tokens": 4, "upload_seconds": 3.0}
    with serving(nano, tmp_path_factory.mktemp("served"), **limits) as (demo, url):
        yield demo, url


@pytest.fixture
def url(served) -> str:
    return served[1]


@pytest.fixture
def visitor(url: str) -> Visitor:
    return Visitor(url)


@pytest.fixture
def kept(served) -> Any:
    """The names of all temporary files."""
    return lambda: {path for path in served[0].files.folder.rglob("*") if path.is_file()}


def test_views_of_the_page_copy_nothing_of_the_model(url, monkeypatch):
    copies = []

    def counting(original):
        return lambda tensor, memo: (copies.append(tensor.shape), original(tensor, memo))[1]

    for kind in (torch.Tensor, torch.nn.Parameter):
        monkeypatch.setattr(kind, "__deepcopy__", counting(kind.__deepcopy__))
    copy.deepcopy(torch.zeros(3))
    assert copies.pop() == (3,)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in ("/", "/config", "/gradio_api/info") * 3:
        assert httpx.get(url + path).status_code == 200
    assert copies == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; one copy would be 1,048,576


ADDRESS = "http://127.0.0.1:{port}/secret.png"


def file_like(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


HIDDEN = {
    "a file": file_like,
    "capitals": lambda address: file_like(address.replace("http", "HTTP")),
    "its url": lambda address: file_like("x.png", url=address),
    "in a list": lambda address: [file_like(address)],
    "in an object": lambda address: {"a": {"b": [file_like(address)]}},
    "in a file": lambda address: {**file_like("x.png"), "orig_name": file_like(address)},
    "as a file's path": lambda address: file_like(file_like(address)),
    "without protocol": lambda address: file_like(address.removeprefix("http:")),
    "of another protocol": lambda address: file_like(address.replace("http", "file")),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_addresses_are_fetched_through_no_field_of_no_step(visitor, kept, monkeypatch, hide):
    asked, fetched, before = [], [], kept()

    class Secret(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    async def fetch(address: str, **_: Any) -> str:  # in place of one that would refuse loopback by itself
        fetched.append(address)
        return str(httpx.get(address))

    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", fetch)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Secret) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        value = hide(ADDRESS.format(port=other.server_address[1]))
        for name, step in visitor.steps.items():
            for field in range(len(step["inputs"])):
                body = visitor.body(name) | {"event_data": value}
                body["data"][field] = value
                for route in ("queue/join", "run/predict", f"run/{name}", f"api/{name}", f"call/{name}"):
                    answer = visitor.client.post(f"/gradio_api/{route}", json=body)
                    assert answer.status_code in (400, 403, 404), (name, field, route, answer.text)
        for query in ("file=http://127.0.0.1:{}/a.png", "proxy=http://127.0.0.1:{}/", "file=//127.0.0.1:{}/a.png"):
            path = query.format(other.server_address[1])
            assert visitor.client.get(f"/gradio_api/{path}").status_code in (403, 404)
        other.shutdown()
    assert (asked, fetched) == ([], [])
    assert kept() == before


def test_a_question_may_speak_of_an_address(visitor):
    [path] = visitor.upload("a.jpg", ROOM).json()
    assert visitor.run("measure", visitor.photo(path), 500.0)["success"]
    assert visitor.run("ask", None, "What is http://127.0.0.1:1/?")["success"]


def test_an_upload_is_its_visitors_alone(served, visitor, url):
    [path] = visitor.upload("../../<b>My room</b>.jpg", ROOM).json()
    assert Path(path).parent.parent == served[0].files.folder / "uploads"
    assert Path(path).name == "b.jpg"
    stranger, no_cookies = Visitor(url), Visitor(url)
    no_cookies.client.cookies.clear()
    for other in (stranger, no_cookies):
        for name in ("look", "measure", "name_camera"):
            assert other.join(name, other.photo(path), None).status_code == 403
    assert visitor.join("look", visitor.photo(path)).status_code == 200
    sibling = Path(path).parent / "other.jpg"
    detour = f"{path}/../{Path(path).name}"
    for wrong in (detour, str(Path(path).parent), str(sibling), path.replace("uploads", "results")):
        assert visitor.join("look", visitor.photo(wrong)).status_code == 403

    [path] = no_cookies.upload("a.jpg", ROOM).json()  # a browser that keeps no cookies: the first tab owns it
    assert no_cookies.join("look", no_cookies.photo(path)).status_code == 200
    no_cookies.session = "another"
    assert no_cookies.join("look", no_cookies.photo(path)).status_code == 403


BODIES = [b"", b"[]", b"{", b"[" * 60_000, b'{"data": 1}', b'{"data": [], "fn_index": 0}']
BODIES += [
    b'{"data": %s, "fn_index": %s, "session_hash": "%s"}' % parts
    for parts in (
        *((b"[]", b"true", b"a"), (b"[]", b"99", b"a"), (b"[]", b"0", b"../a")),
        *((b"[0, 0]", b"0", b"a"), (b"[NaN]", b"0", b"a"), (b'["0"]', b"0", b"a")),
    )
]


@pytest.mark.parametrize("body", BODIES)
def test_bodies_that_no_page_sends_are_refused(url, body):
    answer = httpx.post(f"{url}/gradio_api/run/predict", content=body)
    assert answer.status_code in (400, 404)
    assert "detail" in answer.json()


def test_numbers_are_numbers(visitor):
    [path] = visitor.upload("a.jpg", ROOM).json()
    for value in ("5", [5], {}, True, 10**400):
        assert visitor.join("measure", visitor.photo(path), value).status_code == 400
    body = json.dumps(visitor.body("measure", visitor.photo(path), 0)).replace(", 0, ", ", Infinity, ")
    assert visitor.client.post("/gradio_api/queue/join", content=body).status_code == 400


def raw(url: str, request: bytes, *rest: bytes) -> bytes:
    """What the server answers to these bytes; where it closes early, what came until then."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for piece in (request, *rest):
                connection.sendall(piece)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    return answer


def head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


FORM = "Content-Type: multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_bytes_are_counted_as_they_come(url, kept, path):
    before = kept()
    chunk = b"%x\r\n" % 50_000 + bytes(50_000) + b"\r\n"
    headers = [FORM, "Transfer-Encoding: chunked"]
    for more in ([], ["Content-Length: 10"]):
        answer = raw(url, head(path, *headers, *more), b"%x\r\n" % len(PART) + PART + b"\r\n", *[chunk] * 40)
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 411", b"")
    answer = raw(url, head(path, FORM, f"Content-Length: {2**30}"), *[bytes(50_000)] * 40)
    assert answer[:12] in (b"HTTP/1.1 413", b"")
    assert kept() == before


def test_what_gives_no_length_is_not_read_for_ever(url):
    started = time.monotonic()
    answer = raw(url, head("/gradio_api/queue/join", "Content-Length: 50"), b"{")
    assert answer[:12] == b"HTTP/1.1 408"
    assert time.monotonic() - started < 15


def test_uploads_that_break_off_leave_nothing_and_take_no_room(served, visitor, url, kept):
    before = kept()
    host, port = url.removeprefix("http://").split(":")
    begin = head("/gradio_api/upload", FORM, f"Content-Length: {LARGEST}") + PART
    waiting = [socket.create_connection((host, int(port))) for _ in range(60)]
    for connection in waiting:  # together they speak of more than the disk limit, and send nothing of it
        connection.sendall(begin)
    assert visitor.upload("a.jpg", ROOM).status_code == 200
    for connection in waiting:
        connection.close()
    for _ in range(120):  # together they send more than the disk limit
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(begin + bytes(LARGEST // 2))
    deadline = time.monotonic() + 30
    while (answer := visitor.upload("b.jpg", ROOM)).status_code == 507 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.status_code == 200
    assert {path.name for path in kept() - before} == {"a.jpg", "b.jpg"}


def test_one_file_an_upload(visitor, kept):
    before = kept()
    for files in ([("files", ("a.png", b"1")), ("files", ("b.png", b"2"))], [("other", ("a.png", b"1"))]):
        assert visitor.client.post("/gradio_api/upload", files=files).status_code == 400
    assert visitor.client.post("/gradio_api/upload", data={"files": "text"}).status_code == 400
    assert kept() == before


ROUTES = {
    "POST": [
        *("process_recording", "component_server", "vibe-edit", "call/measure", "call/v2/measure", "api/look"),
        *("stream/a", "upload/"),
    ],
    "GET": ["deep_link?session_hash=a", "openapi.json", "queue/status", "file/etc/passwd", "upload"],
    "PUT": ["upload"],
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, f"/gradio_api/{path}") for method, paths in ROUTES.items() for path in paths),
        *(("POST", "/login"), ("DELETE", "/"), ("OPTIONS", "/")),
    ],
)
def test_only_the_pages_own_routes_are_there(visitor, kept, method, path):
    before = kept()
    files = {"video": ("a.mp4", b"x", "video/mp4")} if "recording" in path else None
    assert visitor.client.request(method, path, files=files).status_code == 404
    assert kept() == before


def test_steps_go_their_own_way_alone(visitor):
    [path] = visitor.upload("a.jpg", ROOM).json()
    body = visitor.body("measure", visitor.photo(path), 500.0)
    assert visitor.client.post("/gradio_api/run/measure", json=body).status_code == 404
    body = visitor.body("look", visitor.photo(path))
    assert visitor.client.post("/gradio_api/queue/join", json=body).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "10.0.0.1"}, 421),
        ({"Host": "["}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
    ],
)
def test_other_names_and_other_sites_are_refused(url, headers, status):
    assert httpx.get(f"{url}/config", headers=headers).status_code == status
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.jpg", ROOM)}, headers=headers)
    assert answer.status_code == status


PROXY, EVERYWHERE = ("127.0.0.1", False, ["Demo.example.org"]), ("0.0.0.0", False, [])


@pytest.mark.parametrize(
    ("known", "host", "origin", "allowed"),
    [
        (PROXY, "127.0.0.1:7860", "https://demo.example.org", True),  # a proxy that says its own name
        (PROXY, "demo.example.org", "https://demo.example.org", True),
        (PROXY, "demo.example.org", "https://evil.example", False),
        (PROXY, "192.168.1.5", None, False),
        (EVERYWHERE, "192.168.1.5:7860", "http://192.168.1.5:7860", True),
        (EVERYWHERE, socket.gethostname(), None, True),
        (EVERYWHERE, "evil.example", None, False),
        ((None, True, []), "abc.gradio.live", "https://abc.gradio.live", True),
        ((None, False, []), "abc.gradio.live", None, False),
        ((None, False, []), "o-n.hf.space", "https://o-n.hf.space", True),
        ((None, False, []), "x-y.hf.space", None, False),
    ],
)
def test_names_that_were_allowed(monkeypatch, known, host, origin, allowed):
    if host.endswith("hf.space"):
        monkeypatch.setenv("SPACE_ID", "o/n")
        monkeypatch.setenv("SPACE_HOST", "o-n.hf.space")
    with contextlib.nullcontext() if allowed else pytest.raises(Refusal):
        known_hosts(*known).check(host, origin)


def test_files_go_by_age_and_the_disk_is_bounded(tmp_path):
    files = Files(tmp_path, Limits(kept_seconds=100, unused_seconds=10, disk_bytes=1000))
    sample = files.sample(REPOSITORY / "depthvlm" / "assets" / "room.jpg")
    Path(sample).unlink()  # it counts as well
    paths = {}
    for name in ("used", "unused"):
        with open(tmp_path / "content", "wb+") as file:
            paths[name] = Path(files.keep(file, f"{name}.png", "me"))
    (tmp_path / "content").write_bytes(bytes(400))  # as Gradio leaves one
    assert files.claim(str(paths["used"]), "me", "tab")
    results = files.results()
    assert files.room(600)
    assert not files.room(601)
    files.arriving = 100
    assert not files.room(600)

    def age(seconds: float) -> None:
        for path in tmp_path.rglob("*"):
            past = path.stat().st_mtime - seconds
            os.utime(path, (past, past))

    age(11)
    files.sweep()
    assert [path.exists() for path in (*paths.values(), results, tmp_path / "content")] == [True, False, True, True]
    age(100)
    files.sweep()
    assert [path.exists() for path in (*paths.values(), results, tmp_path / "content")] == [False] * 4
    assert not files.claim(str(paths["used"]), "me", "tab")
