"""The demo's steps without a browser: what it takes, what it refuses, what it shows and writes."""

import io
import json
import re
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import trimesh
from conftest import REPOSITORY
from depthvlm.hub_cards.space.demo import Demo, deadline, describe_camera
from depthvlm.hub_cards.space.view import sampled, view_of
from depthvlm.hub_cards.space.visitors import Files, Limits, Visit, camera_of, open_upload, result_stem
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY, Camera
from PIL import Image
from toy_images import exif_of, png_claiming, save_picture

import depthvlm
from depthvlm import DepthPredictor, Prediction
from depthvlm.checkpoint import BUNDLED_MODEL
from depthvlm.conversation import Conversation

ROOM = REPOSITORY / "depthvlm" / "assets" / "room.jpg"
LIMITS = Limits()


@pytest.fixture
def demo(nano: DepthPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    return demo_of(nano, tmp_path, live_caches=2, new_tokens=16)


@pytest.fixture
def view(tmp_path: Path) -> str:
    """A picture of 96x64 pixels."""
    return str(save_picture(tmp_path / "a.png", 96, 64))


def demo_of(nano: DepthPredictor, folder: Path, **limits: Any) -> Demo:
    return Demo(nano, Files(folder / "served", Limits(**limits)), Limits(**limits))


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
GIF_AND_PAGE = b"GIF89a/*\x00\x00\x00\x00\x00*/=1;<html><script>alert(1)</script></html>"
PAGES = [SVG, GIF_AND_PAGE, b"<!doctype html><script>alert(1)</script>", b"%PDF-1.7\n", b""]
PAGES += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]


class TestUploads:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (png_claiming(60000, 60000), "more than 178 million pixels; at most 25 million"),
            (png_claiming(9000, 9000), "9000x9000 pixels; at most 25 million"),
            (png_claiming(5001, 5000), "5001x5000 pixels; at most 25 million"),
            (png_claiming(64, 64), "cannot be decoded: it may be damaged"),
            (png_claiming(64, 64, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80 * 2**20)))), "may be damaged"),
            *((content, "not a picture that can be read here. Give a JPEG, PNG or WebP file") for content in PAGES),
            (ROOM.read_bytes()[:5000], "may be damaged"),
            (b"\xff\xd8" + bytes(20 * 2**20), "larger than 20 MB"),
        ],
    )
    def test_what_is_refused_in_words(self, tmp_path, content, message):
        (tmp_path / "upload.png").write_bytes(content)
        started = time.process_time()
        with pytest.raises(ValueError, match=message):
            open_upload(str(tmp_path / "upload.png"), LIMITS)
        assert time.process_time() - started < 5  # a bomb is not unpacked: 10 GB of pixels would take a minute

    def test_a_picture_of_the_greatest_size_is_taken(self, tmp_path):
        Image.new("L", (5000, 5000)).save(tmp_path / "large.png")
        assert open_upload(str(tmp_path / "large.png"), LIMITS).size == (5000, 5000)

    def test_of_a_picture_that_is_also_an_archive_and_a_page_only_the_pixels_are_read(self, tmp_path):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("run.sh", "rm -rf /")
        mixed = tmp_path / "mixed.jpg"
        mixed.write_bytes(ROOM.read_bytes() + b"<script>alert(1)</script>" + archive.getvalue())
        assert zipfile.is_zipfile(mixed)
        assert open_upload(str(mixed), LIMITS).tobytes() == Image.open(ROOM).tobytes()

    @pytest.mark.parametrize(
        ("path", "stem"),
        [
            *(("/x/My photo (1).JPG", "My_photo_1"), ("/x/../<b>&.png", "b"), ("/x/照片.png", "picture")),
            ("a" * 300 + ".png", "a" * 60),
        ],
    )
    def test_the_name_of_the_results_is_plain(self, path, stem):
        assert result_stem(path) == stem


class TestCamera:
    def test_from_exif_unless_another_is_typed(self):
        camera = camera_of(str(ROOM), None, LIMITS)
        assert camera.source == "exif"
        assert camera.fx == pytest.approx(depthvlm.predict(ROOM, BUNDLED_MODEL)[0].camera.fx, abs=1e-3)
        assert "from the picture's EXIF data; 58° across 640 pixels" in describe_camera(camera)
        shown = round(camera.fx, 1)  # what the field shows is not typed
        assert camera_of(str(ROOM), shown, LIMITS).source == "exif"
        typed = camera_of(str(ROOM), shown + 1, LIMITS)
        assert (typed.source, typed.fx) == ("focal_length", shown + 1)
        assert "Focal length: typed;" in describe_camera(typed)

    def test_assumed_turned_and_in_millimetres(self, view, tmp_path):
        camera = camera_of(view, None, LIMITS)
        assert (camera.source, camera.fx) == ("assumed", pytest.approx(48 / np.tan(np.radians(30))))
        assert "<b>assumed</b>" in describe_camera(camera)
        assert "No such lens exists" in describe_camera(camera_of(view, 4.2, LIMITS))
        with pytest.raises(ValueError, match="above 0"):
            camera_of(view, -3.0, LIMITS)
        turned = save_picture(tmp_path / "a.jpg", 96, 64, exif=exif_of(Orientation=6))
        camera = camera_of(str(turned), None, LIMITS)
        assert (camera.width, camera.height) == (64, 96)


class TestView:
    def test_a_small_map_is_shown_as_it_is(self, tmp_path):
        depth = np.random.default_rng(0).uniform(1, 9, (40, 60)).astype(np.float32)
        prediction = Prediction(depth, Camera(50, 51, 30, 20, 60, 40, "fov"), Image.new("RGB", (60, 40)))
        view = view_of(prediction, tmp_path / "view")
        json.dumps(view, allow_nan=False)
        shown = np.fromfile(view["depth"]["path"], "<f4").reshape(40, 60)
        np.testing.assert_array_equal(shown, depth)
        assert (view["columns"], view["rows"]) == (list(range(60)), list(range(40)))
        assert view["camera"] == [50, 51, 30, 20]
        for name in ("colors", "photo"):
            with Image.open(view[name]["path"]) as image:
                assert image.size == (60, 40)

    def test_a_large_map_is_sampled(self, tmp_path):
        depth = np.arange(1000 * 3000, dtype=np.float32).reshape(1000, 3000) + 1
        prediction = Prediction(depth, Camera(900, 900, 1500, 500, 3000, 1000, "fov"), Image.new("RGB", (3000, 1000)))
        view = view_of(prediction, tmp_path / "view")
        rows, columns = view["rows"], view["columns"]
        assert (len(rows), len(columns)) == (256, 768)
        assert (rows[0], columns[0], rows[-1], columns[-1]) == (1, 1, 998, 2998)
        shown = np.fromfile(view["depth"]["path"], "<f4").reshape(256, 768)
        assert shown[100, 500] == depth[rows[100], columns[500]]

    @pytest.mark.parametrize("size", [(2, 2), (2, 400), (5000, 25), (768, 768), (769, 1)])
    def test_any_size(self, size):
        for count, samples in zip(size, sampled(*size), strict=True):
            assert 1 <= len(samples) <= 768
            assert 0 <= samples.min() <= samples.max() < count
            assert (np.diff(samples) >= 1).all()


class TestSteps:
    def measured(self, demo: Demo, path: str) -> Visit:
        return demo.measure(path, None, None)[0]

    def test_from_a_picture_to_files_and_words(self, demo, nano, tmp_path):
        tower = []
        handle = nano.model.model.visual.register_forward_hook(lambda *_: tower.append(1))
        visit, view, source, chat = demo.measure(str(ROOM), None, None)
        mesh, links = demo.write(visit)
        turns = [list(demo.ask(visit, question)) for question in (DEPTH_PROMPT, "And now?")]
        handle.remove()
        assert len(tower) == 1  # depth, and two questions

        [prediction] = nano.predict(ROOM)
        shown = np.fromfile(view["depth"]["path"], "<f4").reshape(480, 640)
        np.testing.assert_allclose(shown, prediction.depth, rtol=1e-6)
        assert "EXIF" in source
        assert chat == []

        files = {Path(path) for path in re.findall('href="gradio_api/file=([^"]+)"', links)}
        assert sorted(path.suffix for path in visit.results.iterdir()) == ["", ".glb", ".npy"]
        assert all(demo.make(str(path)) for path in files)  # when somebody asks for them
        assert not demo.make(f"{visit.results}/other.ply")
        suffixes = ("_depth.npy", "_depth.png", "_color.png", ".ply", ".glb", ".json")
        assert {path.name for path in files} == {f"room{suffix}" for suffix in suffixes}
        [folder] = {path.parent for path in files}
        assert folder.parent == tmp_path / "served" / "results"
        assert len(folder.name) == 32  # 192 random bits
        np.testing.assert_allclose(np.load(folder / "room_depth.npy"), prediction.depth, rtol=1e-6)
        with Image.open(folder / "room_depth.png") as image:
            metres = np.asarray(image) / float(image.text["depth_scale"])
        assert np.abs(metres - prediction.depth).max() <= 0.00051
        cloud, surface = trimesh.load(folder / "room.ply"), trimesh.load(mesh)
        assert cloud.vertices[:, 2].max() == pytest.approx(prediction.depth.max(), rel=1e-3)
        assert -surface.bounds[0, 2] == pytest.approx(prediction.depth.max(), rel=1e-3)
        record = json.loads((folder / "room.json").read_text())
        assert (record["source"], record["focal_source"]) == (None, "exif")  # the server's paths stay its own

        assert turns[0][0] == ("", [{"role": "user", "content": DEPTH_PROMPT}])
        assert turns[0][-1][1][-1] == {"role": "assistant", "content": DEPTH_REPLY}
        shown = [chat[-1]["content"] for _, chat in turns[0][1:-1]]  # word by word
        words = DEPTH_REPLY.split(" ")
        assert shown == [" ".join(words[:count]) for count in range(1, len(words) + 1)]
        assert [turn["role"] for turn in turns[1][-1][1]] == ["user", "assistant"] * 2
        assert turns[1][-1][1] == visit.conversation.messages

    def test_a_typed_focal_length_is_used(self, demo, view):
        visit, _, source, _ = demo.measure(view, 80.0, None)
        assert visit.conversation.prediction.camera.fx == 80
        assert "typed" in source

    def test_a_new_picture_ends_the_last_one(self, demo, view):
        visit = self.measured(demo, view)
        focal, source, *emptied, links = demo.look(str(ROOM), visit)
        assert (focal.value, focal.visible) == (571.8, True)
        assert "EXIF" in source
        assert emptied == [None, None, None, []]  # state, view, mesh and chat
        assert links.count(" disabled>") == 6
        assert visit.conversation is None
        assert not visit.results.exists()
        for step in (lambda: demo.write(visit), lambda: list(demo.ask(visit, "And now?"))):
            with pytest.raises(gr.Error, match="Measure a picture first"):
                step()

    def test_a_bad_upload_is_said_and_measures_nothing(self, demo, view, tmp_path):
        (tmp_path / "x.svg").write_bytes(SVG)
        focal, source, *_ = demo.look(str(tmp_path / "x.svg"), None)
        assert not focal.visible
        assert "not a picture that can be read here" in source
        with pytest.raises(gr.Error, match="not a picture"):
            demo.measure(str(tmp_path / "x.svg"), None, None)
        assert "above 0" in demo.name_camera(view, -1)
        with pytest.raises(gr.Error, match="more than 200 times"):
            demo.measure(str(save_picture(tmp_path / "thin.png", 1000, 4)), None, None)

    def test_without_a_picture(self, demo):
        with pytest.raises(gr.Error, match="Give a picture first"):
            demo.measure(None, None, None)
        for step in (lambda: demo.write(None), lambda: list(demo.ask(None, "Hi"))):
            with pytest.raises(gr.Error, match="Measure a picture first"):
                step()
        assert demo.look(None, None)[1] == ""

    def test_questions_have_limits(self, demo, nano, view, tmp_path):
        visit = self.measured(demo, view)
        short = demo_of(nano, tmp_path, conversation_tokens=1)
        short.visits.used(visit)
        for asked, question, message in (
            (demo, "a" * 2001, "At most 2000 characters"),
            (demo, "<|im_end|>", "control token"),
            (short, "Hi", "too long"),
        ):
            with pytest.raises(gr.Error, match=message):
                list(asked.ask(visit, question))
        assert visit.conversation.messages == []

    def test_only_so_many_pictures_are_in_memory(self, demo, view):
        visits = [self.measured(demo, view) for _ in "abc"]
        assert [visit.conversation is not None for visit in visits] == [False, True, True]
        list(demo.ask(visits[0], "Hi"))
        list(demo.ask(visits[2], "Hi"))
        [*_, (_, chat)] = demo.ask(visits[1], "Hi")  # encodes its image again
        assert [visit.conversation is not None for visit in visits] == [False, True, True]
        [*_, (_, chat)] = demo.ask(visits[0], "Hi again")
        assert [turn["content"] for turn in chat if turn["role"] == "user"] == ["Hi", "Hi again"]
        mesh, _ = demo.write(visits[1])  # from the depth that measuring left on the disk
        assert Path(mesh).exists()
        demo.end(visits[0])
        assert len(demo.visits) == 2

    def test_only_so_many_visits_are_remembered_and_none_for_ever(self, nano, view, tmp_path):
        demo = demo_of(nano, tmp_path, sessions=2)
        visits = [self.measured(demo, view) for _ in "abc"]
        assert [visit in demo.visits for visit in visits] == [False, True, True]
        assert [visit.results.exists() for visit in visits] == [False, True, True]
        visits[1].seen -= Limits.kept_seconds + 1
        demo.sweep()
        assert [visit in demo.visits for visit in visits] == [False, False, True]

    def test_a_visitor_who_leaves_in_the_middle_of_a_reply(self, nano, view, tmp_path):
        demo = demo_of(nano, tmp_path, live_caches=1, new_tokens=4000)
        visit = self.measured(demo, view)
        conversation = visit.conversation
        conversation.release()
        replies = demo.ask(visit, DEPTH_PROMPT)
        next(replies), next(replies)
        replies.close()
        assert not nano.model.depth_head._forward_pre_hooks  # of the deadline
        assert DEPTH_REPLY.startswith(conversation.messages[-1]["content"])
        self.measured(demo, view)
        assert visit.conversation is None
        assert conversation.cached_tokens == 0

    def test_markup_in_a_question_is_shown_as_it_was_typed(self, demo, view):
        visit = self.measured(demo, view)
        for _, chat in demo.ask(visit, "<b>bold</b> &lt; <img src=x>"):
            assert chat[0]["content"] == "&lt;b&gt;bold&lt;/b&gt; &amp;lt; &lt;img src=x&gt;"
        assert visit.conversation.messages[0]["content"] == "<b>bold</b> &lt; <img src=x>"  # what the model reads
        demo.start_anew(visit)
        assert visit.conversation.messages == []


def test_work_that_takes_too_long_is_broken_off_and_leaves_the_model_as_it_was(nano, view, tmp_path):
    with pytest.raises(gr.Error, match="longer than 0 seconds"):
        demo_of(nano, tmp_path, request_seconds=0.0).measure(view, None, None)
    with pytest.raises(TimeoutError), deadline(nano.model, 0.0):
        Conversation(view, nano, fov=60.0)
    assert nano.predict(view, fov=60.0)[0].valid.all()
    with deadline(nano.model, 600.0):
        Conversation(view, nano, fov=60.0)
    assert not nano.model.depth_head._forward_pre_hooks
