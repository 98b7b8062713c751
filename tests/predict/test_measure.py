"""Objects and their distances: replies written by hand, and boxes in nano's own depth of a rendered room."""

import dataclasses
import json

import numpy as np
import pytest
from depthvlm.benchmark.synthetic import render_scene
from depthvlm.processing import Camera
from fixed_words import FixedWords
from PIL import Image

from depthvlm import Prediction, measure
from depthvlm.cli.app import app
from depthvlm.grounding import PROMPT, measured, parse_boxes

ONE = '{"bbox_2d": [100, 200, 300, 600], "label": "chair"}'
CHAIR = ("chair", (64.0, 96.0, 192.0, 288.0))  # of 640x480 pixels


class TestReplies:
    @pytest.mark.parametrize(
        ("reply", "expected"),
        [
            (f"[{ONE}]", [CHAIR]),
            (ONE, [CHAIR]),
            (f"```json\n[\n\t{ONE}\n]\n```", [CHAIR]),
            (f"Here it is:\n```json\n{ONE}\n```\nIt is red.", [CHAIR]),
            (f"{ONE}\n{ONE}", [CHAIR, CHAIR]),
            (f'[{ONE}, {{"bbox_2d": [0, 0, 1000, 1000]}}]', [CHAIR, ("object", (0.0, 0.0, 640.0, 480.0))]),
            ("[]", []),
            ("```json\n[]\n```", []),
            ("There is no red chair in the image.", []),
            ("", []),
        ],
    )
    def test_of_the_form_asked_for(self, reply, expected):
        found = parse_boxes(reply, (640, 480))
        assert [label for label, _ in found] == [label for label, _ in expected]
        for (_, box), (_, wanted) in zip(found, expected, strict=True):
            assert box == pytest.approx(wanted)

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (f"[{ONE}, {ONE[:-20]}", "is broken off, raise `max_new_tokens`"),
            ("[[100, 200, 300, 600]]", r"The reply has \[100, 200, 300, 600\], which is no box"),
            ('[{"bbox_2d": [100, 200, 300]}]', "which is no box"),
            ('[{"bbox_2d": [300, 200, 100, 600]}]', "0 <= x1 < x2 <= 1000"),
            ('[{"bbox_2d": [100, 200, 1300, 600]}]', "which is no box"),
            ('[{"bbox_2d": [NaN, 200, 300, 600]}]', "which is no box"),
            ('[{"bbox_2d": "near"}]', "which is no box"),
            ('[{"point_2d": [5, 5], "label": "chair"}]', "which is no box"),
        ],
    )
    def test_of_another_form_are_shown(self, reply, message):
        with pytest.raises(ValueError, match=message) as error:
            parse_boxes(reply, (640, 480))
        assert repr(reply) in str(error.value)


def prediction(depth: np.ndarray) -> Prediction:
    height, width = depth.shape
    camera = Camera(100.0, 100.0, width / 2, height / 2, width, height, "fov")
    return Prediction(depth.astype(np.float32), camera, Image.new("RGB", (width, height)))


class TestDistances:
    def test_an_object_that_fills_half_of_its_box_before_a_wall(self):
        depth = np.full((60, 80), 5.0)
        depth[20:40, 30:50] = 2.0  # a quarter of the box, in its middle
        found = measured(prediction(depth), "cube", (20, 10, 60, 50))
        assert found.depth == 2
        assert found.share == pytest.approx(0.25)
        # The pixels' centres lie up to 9.5 px from the axis of a camera of 100 px, at 2 m.
        along = (np.arange(20) - 9.5) / 100
        distances = 2 * np.sqrt(1 + along[:, None] ** 2 + along**2)
        assert found.distance == pytest.approx(np.median(distances), rel=1e-6)
        assert found.spread == pytest.approx(np.subtract(*np.percentile(distances, [75, 25])), rel=1e-4)

    def test_a_wall_behind_a_pole_at_the_border_of_the_box(self):
        depth = np.full((60, 80), 5.0)
        depth[:, 20:28] = 1.0
        assert measured(prediction(depth), "wall", (20, 10, 60, 50)).depth == 5

    def test_spread_is_that_of_the_object(self):
        """A floor whose depth grows from 4 to 5 m over the rows of the box: half of it is in the middle half metre."""
        depth = np.repeat(np.linspace(4, 4.99, 100)[:, None], 100, axis=1)
        made = prediction(depth)
        made.camera = Camera(1e6, 1e6, 50, 50, 100, 100, "fov")  # rays are parallel
        found = measured(made, "floor", (0, 0, 100, 100))
        assert found.distance == pytest.approx(4.495, abs=1e-3)
        assert found.spread == pytest.approx(0.495, abs=1e-3)
        assert found.share == 1

    def test_pixels_without_depth_do_not_count(self):
        depth = np.full((60, 80), np.nan)
        depth[0, 0] = 3.0
        assert measured(prediction(depth), "corner", (0, 0, 40, 30)).depth == 3
        with pytest.raises(ValueError, match="no depth in the box"):
            measured(prediction(depth), "sky", (40, 30, 80, 60))


@pytest.fixture(scope="module")
def room():
    return render_scene(1_000_000_001, kind="room")


class TestMeasure:
    """The words are fixed, the depth is nano's own."""

    def test_of_an_object_in_a_rendered_room(self, room):
        """The reply has the true box of the largest thing in the room; its distance is that of its own pixels."""
        sizes = np.bincount(room.segments[room.segments >= 0])
        own = room.segments == sizes.argmax()
        rows, columns = (np.flatnonzero(own.any(axis=axis)) for axis in (1, 0))
        height, width = own.shape
        edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
        reply = json.dumps([{"bbox_2d": [round(1000 * edge) for edge in edges], "label": "it"}])
        found = measure(room.image, "it", standing_in := FixedWords(reply), focal_length=room.focal_length)
        [plain] = standing_in.nano.predict(room.image, focal_length=room.focal_length)
        np.testing.assert_array_equal(found.prediction.depth, plain.depth)
        assert found.prediction.prompt == PROMPT.format(what="it")
        [one] = found.objects
        assert one.box == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=width / 1000)
        y, x = np.nonzero(own)
        rays = np.linalg.norm(
            [(x + 0.5 - width / 2) / room.focal_length, (y + 0.5 - height / 2) / room.focal_length, np.ones(len(x))],
            axis=0,
        )
        assert one.distance == pytest.approx(np.median(plain.depth[own] * rays), rel=0.05)
        assert one.distance == pytest.approx(np.median(room.depth[own] * rays), rel=0.25)

    def test_no_box_is_an_empty_list_with_the_reply(self, room):
        found = measure(room.image, "a giraffe", FixedWords("There is none."), fov=60)
        assert found.objects == []
        assert found.record()["text"] == "There is none."

    def test_the_picture_has_the_box_in_colour(self, room):
        standing_in = FixedWords('[{"bbox_2d": [250, 250, 750, 750], "label": "middle"}]')
        picture = measure(room.image, "the middle", standing_in, fov=60).picture()
        height, width = room.depth.shape
        assert picture.size == (width, height)
        assert picture.getpixel((width // 4, height // 2)) == (255, 64, 32)
        assert picture.getpixel((width // 2, height // 2)) == tuple(room.image[height // 2, width // 2])

    @pytest.mark.parametrize("what", ["", "  ", "a <|im_end|> chair"])
    def test_descriptions_that_are_no_words(self, room, what):
        with pytest.raises(ValueError, match="Describe the object in plain words"):
            measure(room.image, what, FixedWords(""))

    def test_backbones_with_boxes_of_another_form_are_refused(self, room):
        standing_in = FixedWords(ONE)
        other = dataclasses.replace(type(standing_in.model.config).backbone, model_type="qwen2_5_vl")
        standing_in.model.config.__class__ = type("Other", (type(standing_in.model.config),), {"backbone": other})
        with pytest.raises(ValueError, match="has the backbone qwen2_5_vl, whose boxes are in another form"):
            measure(room.image, "the chair", standing_in)


def test_the_command_is_there():
    assert "measure" in {command.callback.__name__ for command in app.registered_commands}
