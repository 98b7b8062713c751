"""The demo in a real browser: a rendered scene of known distances goes in; metres, words and files come out."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import REPOSITORY, WAIT
from depthvlm.benchmark.synthetic.scenes import SyntheticScene, render_scene
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY
from PIL import Image
from playwright.sync_api import Browser, Page
from toy_images import png_claiming

import depthvlm
from depthvlm import Prediction
from depthvlm.checkpoint import BUNDLED_MODEL

# The first of nano's held-out rooms from 1_000_700_000 on that shows six objects, each with a depth within 10 % of the
# truth at its own pixel. It says nothing of nano's accuracy, which docs/benchmarks/nano.md has.
SEED = 1_000_700_199
BAND = 0.10
METRES = r"(\d+\.\d\d) m"


@pytest.fixture(scope="module")
def scene() -> SyntheticScene:
    return render_scene(SEED, kind="room", width=640, height=480)


@pytest.fixture(scope="module")
def photo(scene: SyntheticScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(scene.image).save(path)
    return path


@pytest.fixture(scope="module")
def predicted(scene: SyntheticScene) -> Prediction:
    """What the model says outside of the demo."""
    [prediction] = depthvlm.predict(Image.fromarray(scene.image), BUNDLED_MODEL, focal_length=scene.focal_length)
    return prediction


def upload(page: Page, path: Path) -> str:
    """Give a picture; what the page says of its camera."""
    page.set_input_files("#photo input[type=file]", path)
    page.wait_for_selector("#source [data-source]")
    return page.inner_text("#source")


def type_focal_length(page: Page, value: float) -> None:
    page.fill("#focal input", f"{value:.4f}")
    page.wait_for_selector("#source [data-source=focal_length]")


def measure(page: Page) -> None:
    page.click("#measure")
    page.wait_for_selector("#view .view:not([hidden])")
    page.wait_for_function(
        "document.querySelector('#download-json').closest('a') || !document.querySelector('#download-json').disabled"
    )
    page.wait_for_selector("#mesh canvas")


def place(page: Page, pixel: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Where a pixel of the picture is on the screen."""
    box = page.locator("#view .picture").bounding_box()
    assert box is not None
    return tuple(
        box[k] + (i + 0.5) / n * box[s] for k, s, i, n in zip("xy", ("width", "height"), pixel, size, strict=True)
    )


def clicked(page: Page) -> list[tuple[int, int]]:
    """The pixels of the picture that are marked."""
    marks = page.locator("#view .marks circle")
    shares = [
        [float(marks.nth(i).get_attribute(name).rstrip("%")) for name in ("cx", "cy")] for i in range(marks.count())
    ]
    return [(int(across * 6.4), int(down * 4.8)) for across, down in shares]


def ask(page: Page, question: str) -> str:
    """The reply to a question."""
    replies = page.locator("#chat .bot.message")
    before = replies.count()
    page.fill("#question textarea, #question input", question)
    page.click("#send")
    page.wait_for_function(f"document.querySelectorAll('#chat .bot.message').length > {before}")
    page.wait_for_selector("#chat [aria-label='Loading response']", state="detached")
    page.wait_for_selector("#chat .generating", state="detached")  # the reply comes word by word
    page.wait_for_function(
        """() => {
            const shown = [...document.querySelectorAll('#chat .bot.message')].at(-1).innerText;
            const settled = window.shownReply === shown;
            window.shownReply = shown;
            return settled;
        }""",
        polling=1000,  # between two words a loaded machine may pause
    )
    return replies.last.inner_text().strip()


def pointed_at(page: Page, pixel: tuple[int, int]) -> str:
    """The metres that are shown at a pixel of a picture of 640x480, once its depth has come."""
    for _ in range(50):
        for column in (pixel[0] + 1, pixel[0]):
            page.mouse.move(*place(page, (column, pixel[1]), (640, 480)))
        if found := re.findall(METRES, page.inner_text("#view .pointer")):
            return str(found[0])
        page.wait_for_timeout(200)
    raise AssertionError(f"No metres are shown at {pixel}.")


def download(page: Page, name: str) -> bytes:
    with page.expect_download() as started:
        page.click(f"#download-{name}")
    return Path(started.value.path()).read_bytes()


def picture(screenshots: Path | None, name: str, shot: bytes) -> None:
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(shot)).convert("RGB").save(screenshots / f"{name}.png", optimize=True)


def test_from_a_picture_to_metres_words_and_files(page, scene, photo, predicted, screenshots):
    assert BUNDLED_MODEL in page.inner_text("#note")
    assert "not for photographs" in page.inner_text("#note")
    assert "assumed" in upload(page, photo)
    type_focal_length(page, scene.focal_length)
    assert "typed" in page.inner_text("#source")
    measure(page)

    # The distance under the pointer: what the model says there, and near what is there.
    assert len(scene.objects) == 6
    read = {}
    for thing in scene.objects:
        page.mouse.move(*place(page, thing.pixel, (640, 480)))
        shown = page.inner_text("#view .pointer")
        [metres] = re.findall(METRES, shown)
        column, row = (int(number) for number in re.findall(r"\((\d+), (\d+)\)", shown)[0])
        assert (column, row) == thing.pixel
        assert abs(float(metres) - predicted.depth[row, column]) <= 0.005 + 1e-4
        assert float(metres) == pytest.approx(thing.depth, rel=BAND)
        read[thing.pixel] = float(metres)

    # Between two points: in space, not in depth alone.
    first, second = scene.objects[0].pixel, scene.objects[2].pixel
    for pixel in (first, second):
        page.mouse.click(*place(page, pixel, (640, 480)))
    words = page.inner_text("#view .between")
    between, *ends = (float(metres) for metres in re.findall(METRES, words))
    marked = clicked(page)
    assert np.abs(np.array(marked) - [first, second]).max() <= 1  # a click is at a whole pixel of the screen

    def in_space(pixel: tuple[int, int], depth: np.ndarray) -> np.ndarray:
        column, row = pixel
        return np.linalg.inv(scene.intrinsics) @ [column + 0.5, row + 0.5, 1] * depth[row, column]

    for metres, (column, row) in zip(ends, marked, strict=True):
        assert abs(metres - predicted.depth[row, column]) <= 0.005 + 1e-4
    for depth, tolerance in ((predicted.depth, 0.006), (scene.depth, BAND * scene.depth[first[1], first[0]])):
        truth = np.linalg.norm(in_space(marked[0], depth) - in_space(marked[1], depth))
        assert between == pytest.approx(float(truth), abs=float(tolerance))
    picture(screenshots, "demo_distance", page.locator("#view").screenshot())

    # Words, from the cache of the depth pass.
    assert ask(page, DEPTH_PROMPT) == DEPTH_REPLY
    picture(screenshots, "demo_app", settled(page, "#mesh", full_page=True))
    assert ask(page, "What is in front of me?")

    # In space.
    still = settled(page, "#mesh")
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(still)).convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    box = page.locator("#mesh canvas").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] - 30, steps=5)
    page.mouse.up()
    turned = settled(page, "#mesh")
    assert changed(still, turned) > 0.02

    # Files.
    np.testing.assert_allclose(np.load(io.BytesIO(download(page, "npy"))), predicted.depth, rtol=1e-4)
    with Image.open(io.BytesIO(download(page, "png16"))) as image:
        assert (image.mode, image.text["depth_scale"]) == ("I;16", "1000")
        assert np.abs(np.asarray(image) / 1000 - predicted.depth).max() <= 0.0007
    with Image.open(io.BytesIO(download(page, "color"))) as image:
        assert image.height == 480
        assert image.width > 640
    cloud = trimesh.load(io.BytesIO(download(page, "ply")), file_type="ply")
    assert cloud.vertices[:, 2].max() == pytest.approx(predicted.depth.max(), rel=1e-3)
    mesh = trimesh.load(io.BytesIO(download(page, "glb")), file_type="glb")
    assert -mesh.bounds[0, 2] == pytest.approx(predicted.depth.max(), rel=1e-3)
    record = json.loads(download(page, "json"))
    assert record["camera"]["fx"] == pytest.approx(scene.focal_length, abs=1e-3)
    assert (record["focal_source"], record["source"]) == ("focal_length", None)


def settled(page: Page, selector: str, full_page: bool = False) -> bytes:
    """A picture of an element (or, with `full_page`, of all) once it has stopped changing."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    before = element.screenshot()
    for _ in range(60):
        page.wait_for_timeout(1000)
        after = element.screenshot()
        distinct = len(np.unique(np.asarray(Image.open(io.BytesIO(after)).convert("RGB")).reshape(-1, 3), axis=0))
        if changed(before, after) < 0.001 and distinct > 1000:
            return page.screenshot(full_page=True) if full_page else after
        before = after
    raise AssertionError(f"{selector} shows nothing, or does not come to rest")


def changed(before: bytes, after: bytes) -> float:
    """The share of pixels that differ plainly."""
    a, b = (np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int) for shot in (before, after))
    return float((np.abs(a - b).max(-1) > 16).mean())


def test_a_sample_brings_its_camera_which_can_be_changed(page):
    page.locator(".gallery img, .gallery-item img").first.click()
    page.wait_for_selector("#source [data-source=exif]")
    assert page.input_value("#focal input") == "571.8"
    measure(page)
    pixel = 320, 240
    before = pointed_at(page, pixel)
    type_focal_length(page, 700)
    shown = page.get_attribute("#view .picture", "src")
    page.press("#focal input", "Enter")
    page.wait_for_function("shown => document.querySelector('#view .picture').src !== shown", arg=shown)
    after = pointed_at(page, pixel)
    room = REPOSITORY / "depthvlm" / "assets" / "room.jpg"
    for metres, focal_length in ((before, None), (after, 700.0)):
        [prediction] = depthvlm.predict(room, BUNDLED_MODEL, focal_length=focal_length)
        assert abs(float(metres) - prediction.depth[pixel[1], pixel[0]]) <= 0.005 + 1e-4
    assert before != after


def test_the_photo_can_be_shown_instead(page, photo):
    upload(page, photo)
    measure(page)
    assert page.get_attribute("#view .picture", "src").endswith("/colors.jpg")
    page.get_by_role("button", name="Photo").click()
    assert page.get_attribute("#view .picture", "src").endswith("/photo.jpg")


def test_a_picture_from_the_webcam(page):
    page.get_by_role("button", name="Capture from camera").click()
    page.locator("#photo").get_by_text("Webcam").click()
    page.get_by_role("button", name="capture photo").click()
    page.wait_for_selector("#source [data-source=assumed]")
    measure(page)


def test_a_pasted_picture(page, scene):
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "PNG")
    page.evaluate(
        """async (bytes) => {
          const item = new ClipboardItem({"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})});
          navigator.clipboard.read = async () => [item];
        }""",
        list(stream.getvalue()),
    )
    page.get_by_role("button", name="Paste from clipboard").click()
    page.wait_for_selector("#source [data-source=assumed]")


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bomb.png", png_claiming(60000, 60000), "at most 25 million"),
        ("drawing.svg", SVG, "not a picture that can be read here"),
        ("page.gif", b"GIF89a/*\x00\x00\x00\x00\x00*/=1;<html><script>alert(1)</script>", "not a picture that can"),
        ("page.png", b"<html><script>alert(1)</script>", "not a picture that can be read here"),
    ],
)
def test_hostile_files_are_refused_in_words(page, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in upload(page, tmp_path / name)
    page.click("#measure")
    page.get_by_text(message).nth(1).wait_for()  # said again, as an error
    assert page.locator("#view .view").is_hidden()


def test_a_picture_that_is_also_a_page_is_a_picture(page, server, tmp_path):
    mixed = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    mixed.write_bytes((REPOSITORY / "depthvlm/assets/room.jpg").read_bytes() + b"<script>alert(1)</script>")
    assert "EXIF" in upload(page, mixed)
    measure(page)
    address = page.locator("#photo img").first.get_attribute("src")
    assert address is not None
    page.goto(address)
    assert page.evaluate("document.contentType") == "image/jpeg"


def test_too_large_a_file(page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(21 * 2**20))
    page.set_input_files("#photo input[type=file]", tmp_path / "large.png")
    page.get_by_text(re.compile("maximum allowed size|exceeds|At most 20 MB", re.IGNORECASE)).first.wait_for()


def test_nothing_of_one_visitor_is_visible_to_another(page, browser: Browser, server, photo):
    upload(page, photo)
    measure(page)
    ask(page, "A secret question")
    context = browser.new_context()
    context.set_default_timeout(WAIT)
    other = context.new_page()
    other.goto(server.url)
    other.wait_for_selector("#measure")
    assert other.locator("#view .view").is_hidden()
    assert other.locator("#focal").is_hidden()
    assert "secret" not in other.content()
    assert "scene" not in other.locator("body").inner_text()
    assert other.locator("#download-npy").is_disabled()
    other.fill("#question textarea, #question input", "What was asked?")
    other.click("#send")
    other.get_by_text("Measure a picture first").first.wait_for()
    assert "secret" not in other.content()
    context.close()

    # A reloaded page is a new visitor too.
    page.reload()
    page.wait_for_selector("#measure")
    assert page.locator("#view .view").is_hidden()
